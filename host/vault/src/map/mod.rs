//! The map: which chunk holds which extent of a disk.
