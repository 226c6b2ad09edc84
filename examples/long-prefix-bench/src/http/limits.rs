//! What the system lets this process have.

use std::fs;

/// Files that it may have open; `None` where the system does not say.
pub(super) fn open_files() -> Option<u64> {
    parse(&fs::read_to_string("/proc/self/limits").ok()?)
}

/// What to say of a run that is out of file descriptors, of which there were so many.
pub(super) fn out_of_descriptors(limit: Option<u64>) -> String {
    let limit = limit.map_or_else(String::new, |limit| format!(" (the limit is {limit})"));
    format!(
        "out of file descriptors{limit}: every request under way takes one; raise it with `ulimit -n 65536`"
    )
}

/// The soft limit.
fn parse(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(parse(text), Some(1024));
        assert_eq!(parse("nothing"), None);
    }
}
