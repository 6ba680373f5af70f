"""A page on this machine for screening adsorbates on slabs with a model of one's own."""
