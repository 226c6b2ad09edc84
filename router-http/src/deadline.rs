//! How long a client is willing to wait for all of its answer: the header `x-request-timeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::error::Failure;
use crate::headers;

/// Seconds, decimals allowed, or a number with the unit `ms`, `s` or `m`.
pub(crate) const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");

/// Longer waits are none at all.
const LONGEST: f64 = 86_400.0;

/// Takes the time out of a request's headers: no worker knows it.
pub(crate) fn take(headers: &mut HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers::take(headers, &REQUEST_TIMEOUT) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse);
    parsed.map(Some).ok_or(Failure::RequestTimeout)
}

fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = match text {
        text if text.ends_with("ms") => (text.strip_suffix("ms")?, 1e-3),
        text if text.ends_with('s') => (text.strip_suffix('s')?, 1.0),
        text if text.ends_with('m') => (text.strip_suffix('m')?, 60.0),
        text => (text, 1.0),
    };
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = number.parse::<f64>().ok().filter(|_| plain)? * unit;
    (seconds > 0.0 && seconds <= LONGEST).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_units_are_read_and_nothing_else() {
        for (text, millis) in
            [("2", 2_000), ("0.25", 250), (" 1.5s ", 1_500), ("250ms", 250), ("2m", 120_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "0", "-1", "1e9", "inf", "NaN", "+1", "1h", "s", "ms", "90000", "1 2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
