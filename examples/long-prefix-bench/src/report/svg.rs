//! Plots as SVG text: a frame with axes, and what is drawn in it. Colours are classes of the page's style.

use std::fmt::Write as _;

/// How values stand on an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From the first to the last.
    Linear(f64, f64),
    /// The same by powers of ten; both are positive.
    Log(f64, f64),
}

/// A plot under construction.
#[derive(Debug)]
pub(super) struct Plot {
    body: String,
    x: Scale,
    y: Scale,
    width: f64,
    height: f64,
    /// Room at the right, beside the frame.
    right: f64,
}

const LEFT: f64 = 52.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 34.0;

impl Scale {
    /// By powers of ten around positive values, at least one of them.
    pub(super) fn log_around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if !low.is_finite() {
            return Self::Log(0.1, 1.0);
        }
        // The next of 1, 2 and 5 outwards.
        Self::Log(step(low, false), step(high * 1.0001, true))
    }

    /// Place of a value, 0 to 1; beyond the ends it stays at them.
    fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear(low, high) => (value - low) / (high - low),
            Self::Log(low, high) => (value.max(f64::MIN_POSITIVE) / low).ln() / (high / low).ln(),
        };
        place.clamp(0.0, 1.0)
    }

    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(low, high) => (0..=4).map(|i| low + (high - low) * f64::from(i) / 4.0).collect(),
            Self::Log(low, high) => {
                let mut ticks = vec![low];
                while ticks[ticks.len() - 1] < high * 0.999 {
                    ticks.push(step(ticks[ticks.len() - 1] * 1.001, true));
                }
                // Powers of ten alone where there are many.
                let many = ticks.len() > 7;
                ticks.retain(|tick| !many || (tick.log10() - tick.log10().round()).abs() < 1e-6);
                ticks
            }
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten, up or down; the value itself if it is one.
fn step(value: f64, up: bool) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let found = if up {
        steps.into_iter().find(|step| step * power >= value * (1.0 - 1e-9))
    } else {
        steps.into_iter().rev().find(|step| step * power <= value * (1.0 + 1e-9))
    };
    found.unwrap_or(1.0) * power
}

impl Plot {
    /// An empty frame of this size, with a title and the units of its axes.
    pub(super) fn new(title: &str, x: (Scale, &str), y: (Scale, &str), size: (f64, f64), right: f64) -> Self {
        let (width, height) = size;
        let mut plot = Self { body: String::new(), x: x.0, y: y.0, width, height, right };
        let (left, right, bottom) = (LEFT, plot.x_of_end(), height - BOTTOM);
        let _ = write!(plot.body, r#"<text class="title" x="{left}" y="14">{}</text>"#, escaped(title));
        for tick in plot.x.ticks() {
            let at = plot.x_at(tick);
            let _ = write!(
                plot.body,
                r#"<path class="grid" d="M{at:.1} {TOP}V{bottom}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                bottom + 14.0,
                number(tick)
            );
        }
        for tick in plot.y.ticks() {
            let at = plot.y_at(tick);
            let _ = write!(
                plot.body,
                r#"<path class="grid" d="M{left} {at:.1}H{right:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                left - 6.0,
                at + 3.5,
                number(tick)
            );
        }
        let _ = write!(
            plot.body,
            r#"<text class="unit" x="{right:.1}" y="{:.1}" text-anchor="end">{}</text><text class="unit" x="{right:.1}" y="14" text-anchor="end">{}</text>"#,
            height - 4.0,
            escaped(x.1),
            escaped(y.1)
        );
        plot
    }

    fn x_of_end(&self) -> f64 {
        self.width - self.right
    }

    fn x_at(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (self.x_of_end() - LEFT)
    }

    fn y_at(&self, value: f64) -> f64 {
        let bottom = self.height - BOTTOM;
        bottom - self.y.place(value) * (bottom - TOP)
    }

    /// A line through points; a missing one breaks it.
    pub(super) fn line(&mut self, class: &str, name: &str, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let mut path = String::new();
        let mut pen_down = false;
        for (x, y) in points {
            if let Some(y) = y {
                let verb = if pen_down { 'L' } else { 'M' };
                let _ = write!(path, "{verb}{:.1} {:.1}", self.x_at(x), self.y_at(y));
            }
            pen_down = y.is_some();
        }
        let name = escaped(name);
        let _ = write!(self.body, r#"<path class="line {class}" d="{path}"><title>{name}</title></path>"#);
    }

    /// Points with their names beside the frame, tied to them by thin lines.
    pub(super) fn named_points(&mut self, points: &[(String, String, f64, f64)]) {
        let mut placed: Vec<_> =
            points.iter().map(|(class, name, x, y)| (class, name, self.x_at(*x), self.y_at(*y))).collect();
        placed.sort_by(|a, b| a.3.total_cmp(&b.3));
        let least = 12.0;
        // Names keep their order, a line apart, and stay within the plot.
        let mut labels: Vec<f64> = placed.iter().map(|(.., y)| *y).collect();
        let mut lowest = self.height - BOTTOM + 10.0;
        for label in labels.iter_mut().rev() {
            *label = label.min(lowest);
            lowest = *label - least;
        }
        let mut highest = TOP;
        for label in &mut labels {
            *label = label.max(highest);
            highest = *label + least;
        }
        let beside = self.x_of_end() + 14.0;
        for ((class, name, x, y), label) in placed.into_iter().zip(labels) {
            let name = escaped(name);
            let _ = write!(
                self.body,
                r#"<path class="lead" d="M{x:.1} {y:.1}L{:.1} {label:.1}"/><circle class="dot {class}" cx="{x:.1}" cy="{y:.1}" r="4.5"><title>{name}</title></circle><text x="{beside:.1}" y="{:.1}">{name}</text>"#,
                beside - 3.0,
                label + 3.5
            );
        }
    }

    /// The finished element.
    pub(super) fn finish(self) -> String {
        let (width, height) = (self.width, self.height);
        format!(
            r#"<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{}</svg>"#,
            self.body
        )
    }
}

/// A tick or a figure, with as many digits as say something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || (size - size.round()).abs() < 1e-9 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}").trim_end_matches('0').to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').to_owned(),
    }
}

/// Text for an element or an attribute.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithmic_axes_end_at_round_numbers() {
        assert_eq!(Scale::log_around([0.13, 7.0].into_iter()), Scale::Log(0.1, 10.0));
        assert_eq!(Scale::Log(0.1, 1.0).ticks().len(), 4);
        assert_eq!(Scale::log_around(std::iter::empty()), Scale::Log(0.1, 1.0));
        let ticks = Scale::Log(0.01, 100.0).ticks();
        assert_eq!(ticks.len(), 5, "{ticks:?}");
    }

    #[test]
    fn gaps_break_lines() {
        let scale = Scale::Linear(0.0, 1.0);
        let mut plot = Plot::new("a < b", (scale, "s"), (scale, "%"), (300.0, 200.0), 20.0);
        plot.line("c1", "x", [(0.0, Some(0.0)), (0.5, None), (1.0, Some(1.0))].into_iter());
        let svg = plot.finish();
        let line = svg.split("class=\"line c1\"").nth(1).unwrap();
        assert_eq!(line.split('"').nth(1).unwrap().matches('M').count(), 2);
        assert!(svg.contains("a &lt; b"));
    }

    #[test]
    fn names_do_not_stand_on_each_other() {
        let (x, y) = (Scale::Linear(0.0, 1.0), Scale::Linear(0.0, 1.0));
        let mut plot = Plot::new("", (x, ""), (y, ""), (300.0, 200.0), 100.0);
        let point = |name: &str| ("c1".to_owned(), name.to_owned(), 0.5, 0.01);
        plot.named_points(&["a", "b", "c"].map(point));
        let svg = plot.finish();
        let mut heights: Vec<f64> = svg
            .split("</circle><text")
            .skip(1)
            .map(|text| text.split('"').nth(3).unwrap().parse().unwrap())
            .collect();
        heights.sort_by(f64::total_cmp);
        assert!(heights.windows(2).all(|pair| pair[1] - pair[0] > 11.0), "{heights:?}");
        assert!(heights[2] < 200.0);
    }
}
