//! Text that its name alone determines, as token ids.

/// Token ids that stand for text.
const VOCABULARY: std::ops::Range<u32> = 100..32_000;

/// Appends so many tokens of the text with this name. A longer piece begins with every shorter one.
pub(crate) fn extend(tokens: &mut Vec<u32>, name: u64, len: usize) {
    let mut rng = fastrand::Rng::with_seed(name.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x00E5_9A11);
    let span = u64::from(VOCABULARY.end - VOCABULARY.start);
    // Two tokens of each number drawn, by multiplication instead of division.
    for at in (0..len).step_by(2) {
        let drawn = rng.u64(..);
        let token = |bits: u64| VOCABULARY.start + ((bits * span) >> 32) as u32;
        tokens.push(token(drawn >> 32));
        if at + 1 < len {
            tokens.push(token(drawn & 0xFFFF_FFFF));
        }
    }
}

/// The text with this name.
pub(crate) fn text(name: u64, len: usize) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(len);
    extend(&mut tokens, name, len);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_its_name_s() {
        assert_eq!(text(7, 101), text(7, 200)[..101]);
        assert_ne!(text(7, 10), text(8, 10));
        assert!(text(1, 1_000).iter().all(|token| VOCABULARY.contains(token)));
    }
}
