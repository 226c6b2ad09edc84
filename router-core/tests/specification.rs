//! The index does what its specification does, under random operations.

mod operations;

use proptest::prelude::*;

/// Lists of operations that are tried; fewer where every step is interpreted.
const CASES: u32 = if cfg!(miri) { 2 } else { 16 };
/// Operations in one list.
const OPERATIONS: usize = if cfg!(miri) { 60 } else { 400 };

proptest! {
    // Failures stand in the test's output; a file of them has no place under Miri, which has no file system.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_it_does_is_what_the_specification_does(
        list in prop::collection::vec(any::<operations::Bytes>(), 1..OPERATIONS),
    ) {
        operations::run(list.into_iter().map(operations::Operation::from));
    }
}
