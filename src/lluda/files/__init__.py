"""Files as such: strict JSON, mapped, atomic, claimed; what a file holds that is not what its name says."""
