//! Numbers in decimal digits.

/// The number that digits stand for. `None` if there are none, or anything else (what std parses may have a sign), or if it does not fit.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    let append = |number: u64, byte: &u8| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(digit.into())
    };
    digits.iter().try_fold(0, append).filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_alone_are_a_number() {
        for (digits, expected) in [("0", 0), ("007", 7), ("1844", 1844), ("18446744073709551615", u64::MAX)] {
            assert_eq!(number(digits.as_bytes()), Some(expected));
        }
        for other in ["", "+1", "-1", " 1", "1 ", "1.", "0x1", "/", ":", "18446744073709551616"] {
            assert_eq!(number(other.as_bytes()), None, "{other:?}");
        }
    }
}
