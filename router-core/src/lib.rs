//! Espalier's core: prefix index, snapshots, policies and in-flight accounting, without I/O or clock.

pub mod key;
