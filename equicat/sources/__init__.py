"""Where data sets come from: OC20, a group's own DFT relaxations, toy relaxations on EMT."""
