//! Joins metrics of several workers in Prometheus' text format: a label says whose each sample is, and every family is one block.

/// The families in the order in which they are met: of each its comments, once, and its samples.
pub(super) fn join(texts: &[(&str, String)]) -> String {
    let mut families: Vec<Family> = Vec::new();
    for (worker, text) in texts {
        let label = format!("worker=\"{}\"", worker.replace('\\', "\\\\").replace('"', "\\\""));
        let mut current: Option<usize> = None;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(name) = described(line) {
                let at = place(&mut families, name);
                if !families[at].comments.iter().any(|known| known == line) && families[at].from == *worker {
                    families[at].comments.push(line.to_owned());
                } else if families[at].from.is_empty() {
                    families[at].from = (*worker).to_owned();
                    families[at].comments.push(line.to_owned());
                }
                current = Some(at);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                // A histogram's samples have longer names than their family.
                let at = match current.filter(|at| name.starts_with(&*families[*at].name)) {
                    Some(at) => at,
                    None => place(&mut families, name),
                };
                families[at].samples.push(labelled(line, name, &label));
            }
        }
    }
    let lines = families.iter().flat_map(|family| family.comments.iter().chain(&family.samples));
    lines.flat_map(|line| [line.as_str(), "\n"]).collect()
}

#[derive(Debug, Default)]
struct Family {
    name: String,
    /// The worker whose comments are shown.
    from: String,
    comments: Vec<String>,
    samples: Vec<String>,
}

/// The family that a comment describes.
fn described(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# TYPE ").or_else(|| line.strip_prefix("# HELP "))?;
    rest.split(' ').next()
}

fn place(families: &mut Vec<Family>, name: &str) -> usize {
    families.iter().position(|family| family.name == name).unwrap_or_else(|| {
        families.push(Family { name: name.to_owned(), ..Family::default() });
        families.len() - 1
    })
}

/// A sample with one more label.
fn labelled(line: &str, name: &str, label: &str) -> String {
    let rest = &line[name.len()..];
    match rest.strip_prefix('{') {
        Some(rest) if rest.starts_with('}') => format!("{name}{{{label}{rest}"),
        Some(rest) => format!("{name}{{{label},{rest}"),
        None => format!("{name}{{{label}}}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_whole_and_samples_say_whose_they_are() {
        let one = "# HELP a help\n# TYPE a gauge\na{rank=\"0\"} 1\na{} 2\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 3\n";
        let two = "# TYPE a gauge\na 5\n# TYPE h histogram\nh_sum 4\n# TYPE own counter\nown 1\n";
        let joined = join(&[("http://1", one.to_owned()), ("http://2", two.to_owned())]);
        let expected = "# HELP a help\n# TYPE a gauge\na{worker=\"http://1\",rank=\"0\"} 1\na{worker=\"http://1\"} 2\n\
            a{worker=\"http://2\"} 5\n# TYPE h histogram\nh_bucket{worker=\"http://1\",le=\"1\"} 1\n\
            h_sum{worker=\"http://1\"} 3\nh_sum{worker=\"http://2\"} 4\n# TYPE own counter\nown{worker=\"http://2\"} 1\n";
        assert_eq!(joined, expected);
    }
}
