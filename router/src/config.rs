//! Flags and their environment twins, as typed, and the checked configuration made from them.
