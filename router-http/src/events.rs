//! Server-sent events out of a stream of bytes.

use bytes::{Bytes, BytesMut};
use memchr::{memchr_iter, memrchr_iter};

/// Cuts a stream of bytes into whole events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Of an event whose end has not come.
    begun: BytesMut,
}

/// What follows the last byte of an event. SGLang and the APIs that it speaks end lines with a line feed alone.
const END: &[u8] = b"\n\n";

impl Events {
    /// Takes what came next; returns all events that are whole by now, without a copy where `data` holds nothing else.
    pub(crate) fn push(&mut self, mut data: Bytes) -> Bytes {
        if self.begun.is_empty() {
            let whole = end_of_last(&data);
            self.begun.extend_from_slice(&data[whole..]);
            data.truncate(whole);
            return data;
        }
        // The end may have begun before.
        self.begun.extend_from_slice(&data);
        let whole = end_of_last(&self.begun);
        self.begun.split_to(whole).freeze()
    }

    /// What is left at the end of the stream, or of a connection.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        self.begun.split().freeze()
    }
}

/// The events of some whole ones, each with its end.
pub(crate) fn each(mut whole: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let end = end_of_first(whole)?;
        let (event, rest) = whole.split_at(end);
        whole = rest;
        Some(event)
    })
}

/// The data of an event that has one line of it.
pub(crate) fn data(event: &[u8]) -> Option<&[u8]> {
    let data = event.strip_prefix(b"data:")?.trim_ascii();
    (!data.contains(&b'\n')).then_some(data)
}

// An event has few lines: to look at their ends takes less than to prepare a search for two of them.

fn end_of_first(data: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', data).map(|at| at + 1).find(|end| data.get(*end) == Some(&b'\n')).map(|end| end + 1)
}

fn end_of_last(data: &[u8]) -> usize {
    memrchr_iter(b'\n', data).map(|at| at + 1).find(|end| data[..*end].ends_with(END)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &[u8] = b": hello\n\ndata: {\"a\":1}\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\ndata: cut";

    proptest! {
        #[test]
        fn reads_may_end_anywhere(mut cuts in prop::collection::vec(0..STREAM.len(), 0..12)) {
            cuts.sort_unstable();
            cuts.push(STREAM.len());
            let (mut events, mut from, mut passed) = (Events::default(), 0, Vec::new());
            for to in cuts {
                let whole = events.push(Bytes::copy_from_slice(&STREAM[from..to]));
                prop_assert!(whole.is_empty() || whole.ends_with(END));
                passed.extend_from_slice(&whole);
                from = to;
            }
            prop_assert_eq!(&events.take_rest()[..], &b"data: cut"[..]);
            let texts: Vec<_> = each(&passed).map(data).collect();
            let expected: [Option<&[u8]>; 4] = [None, Some(b"{\"a\":1}"), Some(b"{\"a\":2}"), Some(b"[DONE]")];
            prop_assert_eq!(texts, expected);
        }
    }
}
