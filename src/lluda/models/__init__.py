"""One file per component: its formula and the names of its tensors."""
