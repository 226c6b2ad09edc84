//! The command `long-prefix-bench`.

fn main() {}
