//! One table of figures, for a terminal and for the page.

use std::fmt::Write as _;

use super::svg::escaped;

/// Rows of names and figures under one title.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    /// Empty where the heading says it.
    title: String,
    /// What each column says, and its width on a terminal.
    columns: Vec<(String, usize)>,
    rows: Vec<(String, Vec<String>)>,
}

/// Least width of names on a terminal.
const NAME: usize = 26;

impl Table {
    /// A table without rows.
    pub(super) fn new<'a>(
        title: impl Into<String>,
        columns: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> Self {
        let columns = columns.into_iter().map(|(name, width)| (name.to_owned(), width)).collect();
        Self { title: title.into(), columns, rows: Vec::new() }
    }

    /// Adds a row; its figures are in the order of the columns.
    pub(super) fn row(&mut self, name: impl Into<String>, figures: Vec<String>) {
        debug_assert_eq!(figures.len(), self.columns.len(), "every column has a figure");
        self.rows.push((name.into(), figures));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal.
    pub(super) fn text(&self, text: &mut String) {
        let name_width = self.rows.iter().map(|(name, _)| name.chars().count()).fold(NAME, usize::max);
        if !self.title.is_empty() {
            let _ = writeln!(text, "{}", self.title);
        }
        let _ = write!(text, "  {:<name_width$}", "");
        self.columns.iter().for_each(|(name, width)| {
            let _ = write!(text, " {name:>width$}");
        });
        text.push('\n');
        for (name, figures) in &self.rows {
            let _ = write!(text, "  {name:<name_width$}");
            figures.iter().zip(&self.columns).for_each(|(figure, (_, width))| {
                let _ = write!(text, " {figure:>width$}");
            });
            text.push('\n');
        }
    }

    /// For the page.
    pub(super) fn html(&self, body: &mut String) {
        if !self.title.is_empty() {
            let _ = write!(body, "<h3>{}</h3>", escaped(&self.title));
        }
        body.push_str("<div class=\"wide\"><table><tr><th></th>");
        self.columns.iter().for_each(|(name, _)| {
            let _ = write!(body, "<th>{}</th>", escaped(name));
        });
        body.push_str("</tr>");
        for (name, figures) in &self.rows {
            let _ = write!(body, "<tr><td>{}</td>", escaped(name));
            figures.iter().for_each(|figure| {
                let _ = write!(body, "<td>{}</td>", escaped(figure.trim()));
            });
            body.push_str("</tr>");
        }
        body.push_str("</table></div>");
    }
}

/// All of them for a terminal, under one line that says what they are; nothing of none.
pub(super) fn texts(heading: &str, tables: &[Table]) -> String {
    let mut text = String::new();
    if tables.iter().all(Table::is_empty) {
        return text;
    }
    let _ = writeln!(text, "{heading}");
    tables.iter().filter(|table| !table.is_empty()).for_each(|table| table.text(&mut text));
    text.push('\n');
    text
}

/// The same for the page.
pub(super) fn section(body: &mut String, heading: &str, about: &str, tables: &[Table]) {
    if tables.iter().all(Table::is_empty) {
        return;
    }
    let _ = write!(body, "<h2>{}</h2><p class=\"soft\">{}</p>", escaped(heading), escaped(about));
    tables.iter().filter(|table| !table.is_empty()).for_each(|table| table.html(body));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("a < b", [("hits %", 8), ("s", 6)]);
        table.row("round_robin", vec!["12.5".to_owned(), "1 ± 2".to_owned()]);
        table
    }

    #[test]
    fn figures_stand_under_their_columns() {
        let text = texts("What it is", &[table(), Table::new("no rows", [("x", 3)])]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["What it is", "a < b"]);
        let end = |line: &str, what: &str| line[..line.find(what).unwrap()].chars().count() + what.len();
        assert_eq!(end(lines[2], "hits %"), end(lines[3], "12.5"));
        assert!(!text.contains("no rows"));
    }

    #[test]
    fn the_page_has_the_same_and_nothing_of_nothing() {
        let mut body = String::new();
        section(&mut body, "What it is", "in words", &[table()]);
        assert!(body.contains("a &lt; b") && body.contains("<td>12.5</td>"), "{body}");
        let before = body.clone();
        section(&mut body, "More", "in words", &[Table::new("no rows", [("x", 3)])]);
        assert_eq!(body, before);
        assert_eq!(texts("More", &[]), "");
    }
}
