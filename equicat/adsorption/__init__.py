"""Adsorption energies of molecules on surfaces: slabs, sites, placements, batched relaxations, a table and a page."""
