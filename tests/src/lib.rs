//! Cross-crate tests of Espalier.
