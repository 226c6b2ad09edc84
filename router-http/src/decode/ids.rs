//! Reads a flat list of token ids, of which a prompt may have a hundred thousand.
//!
//! What a tokenizer writes (numbers of at most eight digits, with a comma or a comma and a space between them) is read [in
//! stretches](stretches), if six digits are enough, or [in eights](eights) where the processor has what these take, then
//! [in windows](windows), and the rest, from the first unusual one, a number at a time.

#[cfg(target_arch = "x86_64")]
mod eights;
#[cfg(target_arch = "x86_64")]
mod stretches;
mod windows;

use super::spare::Spare;
use crate::decimal;

thread_local! {
    static SPARE: Spare<u32> = const { Spare::new() };
}

/// Takes the ids of a list, without its brackets, as far as it is of the usual shape. Returns where the rest begins: beyond the list if there
/// is none.
type Reader = fn(&mut Vec<u32>, &[u8]) -> usize;

/// What reads many ids together, the quickest first, and the bytes of a list from which on it is worth its while.
const READERS: &[(Reader, usize)] = &[
    #[cfg(target_arch = "x86_64")]
    (stretches::read, stretches::LEAST),
    #[cfg(target_arch = "x86_64")]
    (eights::read, eights::WINDOW),
    (windows::read, windows::WINDOW / 2),
];

/// The ids of a list as it stands in JSON; `None` where it is another one, or malformed.
pub(super) fn ids(value: &[u8]) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    fill(&mut ids, value).map(|()| ids)
}

/// The same of a prompt, which is [given back](give_back).
pub(super) fn prompt(value: &[u8]) -> Option<Vec<u32>> {
    let mut ids = SPARE.with(Spare::take);
    if fill(&mut ids, value).is_some() {
        return Some(ids);
    }
    give_back(ids);
    None
}

/// Takes back what nobody reads any more.
pub(super) fn give_back(ids: Vec<u32>) {
    SPARE.with(|spare| spare.give_back(ids));
}

fn fill(ids: &mut Vec<u32>, value: &[u8]) -> Option<()> {
    fill_by(READERS, ids, value)
}

fn fill_by(readers: &[(Reader, usize)], ids: &mut Vec<u32>, value: &[u8]) -> Option<()> {
    let list = value.strip_prefix(b"[")?.strip_suffix(b"]")?;
    if list.iter().all(is_white) {
        return Some(());
    }
    // Five digits and a comma are usual; eight may be read where there are fewer.
    ids.reserve(list.len() / 6 + 8);
    let mut rest = Some(list);
    for (read, least) in readers {
        rest =
            rest.and_then(|rest| if rest.len() < *least { Some(rest) } else { rest.get(read(ids, rest)..) });
    }
    let mut numbers = rest.into_iter().flat_map(|rest| rest.split(|byte| *byte == b','));
    numbers.try_for_each(|number| id(number).map(|id| ids.push(id)))
}

/// The number between two commas.
fn id(text: &[u8]) -> Option<u32> {
    let first = text.iter().position(|byte| !is_white(byte))?;
    let last = text.iter().rposition(|byte| !is_white(byte))?;
    let digits = &text[first..=last];
    if digits[0] == b'0' && digits.len() > 1 {
        return None;
    }
    decimal::number(digits)?.try_into().ok()
}

fn is_white(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each reader alone, all of them as they are used, and none.
    fn ways() -> Vec<Vec<(Reader, usize)>> {
        let alone = READERS.iter().map(|(read, _)| vec![(*read, 0)]);
        alone.chain([READERS.to_vec(), Vec::new()]).collect()
    }

    /// What a list is read as, whichever way.
    fn ids_of(value: &[u8]) -> Option<Vec<u32>> {
        let each = ways().into_iter().map(|way| {
            let mut ids = Vec::new();
            fill_by(&way, &mut ids, value).map(|()| ids)
        });
        let each: Vec<_> = each.collect();
        assert!(each.iter().all(|ids| *ids == each[0]), "{each:?} of {}", value.escape_ascii());
        each.into_iter().next().flatten()
    }

    /// What a reader that leaves the end of a list to others does with usual ones.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn usual_lists_are_read_but_for_less_than(least: usize, read: Reader) {
        for separator in [",", ", "] {
            for most in [1, 9, 99_999, 999_999] {
                let ids: Vec<u32> =
                    (1..2_000_u32).map(|i| i.wrapping_mul(2_654_435_761) % (most + 1)).collect();
                let texts: Vec<String> = ids.iter().map(u32::to_string).collect();
                for count in (1..400).chain([1_999]) {
                    let list = texts[..count].join(separator);
                    let mut taken = Vec::new();
                    let at = read(&mut taken, list.as_bytes());
                    assert_eq!(taken, ids[..taken.len()]);
                    assert_eq!(list[at..], texts[taken.len()..count].join(separator));
                    assert!(list.len() - at < least, "{at} of {count} with {separator:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn lists_are_read_as_json_is(
            list in prop::collection::vec(prop_oneof![0_u32..10, 0_u32..200_000, any::<u32>()], 0..40),
            separator in prop_oneof![Just(","), Just(", "), Just(" ,\n\t"), Just("  ,")],
            around in prop_oneof![Just(""), Just(" "), Just("\r\n")],
        ) {
            let digits: Vec<String> = list.iter().map(u32::to_string).collect();
            let text = format!("[{around}{}{around}]", digits.join(separator));
            prop_assert_eq!(ids_of(text.as_bytes()), Some(list));
        }

        #[test]
        fn a_long_list_is_read_as_json_is_whatever_one_byte_of_it_becomes(
            list in prop_oneof![Just(200_000_u32), Just(1_000_000), Just(100_000_000)].prop_flat_map(|most| {
                prop::collection::vec(prop_oneof![0_u32..10, 0_u32..100_000, 0..most], 150..900)
            }),
            separator in prop_oneof![Just(","), Just(", ")],
            place in prop_oneof![any::<prop::sample::Index>().prop_map(|place| (place, 0)),
                any::<prop::sample::Index>().prop_map(|place| (place, 1_024))],
            near in 0_usize..24,
            byte in prop::sample::select(b"0123456789, -.x\t".to_vec()),
        ) {
            let digits: Vec<String> = list.iter().map(u32::to_string).collect();
            let mut text = format!("[{}]", digits.join(separator)).into_bytes();
            let at = match place {
                (place, 0) => place.index(text.len()),
                (place, window) => ((place.index(text.len() / window + 1) * window + near).saturating_sub(12)).min(text.len() - 1),
            };
            text[at] = byte;
            prop_assert_eq!(ids_of(&text), serde_json::from_slice::<Vec<u32>>(&text).ok());
        }

        #[test]
        fn a_list_that_is_none_is_not_read(
            before in "([0-9]{1,7}, ?){0,20}",
            text in "[-0-9,. e\"]{0,24}",
            times in prop_oneof![Just(1), 2..80_usize],
        ) {
            let text = format!("[{before}{}]", text.repeat(times));
            let expected = serde_json::from_str::<Vec<u32>>(&text).ok();
            prop_assert_eq!(ids_of(text.as_bytes()), expected);
        }
    }

    #[test]
    fn from_the_first_unusual_number_on_a_list_is_left() {
        let odds =
            ["", "01", "00", "123456789", "-1", "1.5", "1e3", "  7", "7 ", "x", "/", ":", "ÿ", "4\u{2}2"];
        // At the borders of what readers read together.
        let places =
            || (2..140).chain([1_024, 3_072].into_iter().flat_map(|border| border - 16..border + 16));
        for separator in [",", ", "] {
            let usual = vec!["12345"; 1_024].join(separator);
            let whole = format!("{usual}{separator}7");
            assert!(windows::read(&mut Vec::new(), whole.as_bytes()) > whole.len());
            for (odd, place) in odds.iter().flat_map(|odd| places().map(move |place| (odd, place))) {
                // The odd one begins at `place`, after numbers of five digits and one that fills up.
                let step = 5 + separator.len();
                let first = "1".repeat((place - 2) % step + 1);
                let before = std::iter::once(&*first).chain(vec!["12345"; (place - 2) / step]);
                let before = before.collect::<Vec<_>>().join(separator);
                for after in [&*format!("{separator}{usual}"), &*format!("{separator}7"), ""] {
                    let list = format!("{before}{separator}{odd}{after}");
                    for (read, _) in READERS {
                        let mut ids = Vec::new();
                        let at = read(&mut ids, list.as_bytes());
                        assert!(at <= before.len() + separator.len(), "{odd:?} at {place}: {at}");
                        let left = list[at..].split(separator).count();
                        assert_eq!(ids.len() + left, list.split(separator).count(), "{odd:?} at {place}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_stands_for_a_space_is_seen_wherever_that_is() {
        // After the comma of the sixty-fourth number, where the last whole block ends, and at all other places.
        for count in 66..=74 {
            let list = format!("[123456{}]", ", 12345".repeat(count));
            let spaces = list.bytes().enumerate().filter(|(_, byte)| *byte == b' ').map(|(at, _)| at);
            for (at, byte) in spaces.flat_map(|at| b"5,x\xff".map(|byte| (at, byte))) {
                let mut list = list.clone().into_bytes();
                list[at] = byte;
                let expected = serde_json::from_slice::<Vec<u32>>(&list).ok();
                assert_eq!(ids_of(&list), expected, "{} at {at}", byte.escape_ascii());
            }
        }
    }

    #[test]
    fn commas_alone_are_no_list() {
        for before in ["1", "1, 2", "1, ", ""] {
            assert_eq!(ids_of(format!("[{before}{}]", ",".repeat(200)).as_bytes()), None, "{before:?}");
        }
    }

    #[test]
    fn memory_is_used_again_and_what_was_there_is_not_seen() {
        let long = prompt(b"[1,22,333,4444]").unwrap();
        let room = long.capacity();
        give_back(long);
        assert_eq!(prompt(b"[5,x]"), None);
        let short = prompt(b"[6]").unwrap();
        assert_eq!((&short[..], short.capacity()), (&[6][..], room));
    }
}
