//! A chain of AES rounds, which the block hash could be where the processor has them: measured beside ours, and nothing else.
//!
//! Five rounds digest the 64 bytes of a block, one takes the digest into the chain and two more make the block's hash of it:
//! about the least that mixes every byte into every other. It is keyed and not analysed. A router that used it would also need the
//! same for processors of other kinds and one, an order slower, for those without.

use router_core::key::Salt;

use crate::cells::Effort;
use crate::rows::{Better, Plan, Reference, median};
use crate::timing::times_of;
use crate::work::{Cell, Work};

const ROW: &str = "hash, 8k tokens, beside AES rounds";

/// Measures our hash beside the chain, on processors that have AES instructions.
pub(crate) fn run(plan: &Plan) {
    if !plan.wants(ROW) {
        return;
    }
    let effort = Effort::of(plan);
    let cell = Cell { prompt_blocks: 512, targets: 8, blocks: 100_000 };
    let work = Work::new(cell, effort.lookups, |_| (Vec::new(), Vec::new()), true);
    let (mut key, mut hashes) = (Vec::new(), Vec::new());
    let (mut ours, mut aes) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        ours.push(times_of(&work.lookups, |prompt| {
            key.clear();
            work.space.extend_with_tokens(Salt::default(), None, &prompt.tokens, &mut key);
        }));
        aes.push(times_of(&work.lookups, |prompt| {
            hashes.clear();
            chain(&prompt.tokens, &mut hashes);
        }));
    }
    if !hashes.is_empty() {
        plan.row(ROW, "ns", &ours, Reference { name: "AES", value: median(&aes) }, Better::Less, None);
    }
}

/// Appends the hash of every block; nothing where the processor cannot.
fn chain(tokens: &[u32], hashes: &mut Vec<u64>) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("aes") {
        // SAFETY: the processor has what the function was compiled for.
        unsafe { x86::chain(tokens, hashes) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_aesenc_si128, _mm_cvtsi128_si64, _mm_set_epi32, _mm_set_epi64x, _mm_xor_si128,
    };

    /// Tokens in a block.
    const BLOCK: usize = 16;

    #[target_feature(enable = "aes,sse2")]
    pub(super) fn chain(tokens: &[u32], hashes: &mut Vec<u64>) {
        let keys: [__m128i; 8] = std::array::from_fn(|at| {
            let key = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            _mm_set_epi64x(key as i64, !key as i64)
        });
        let (blocks, _) = tokens.as_chunks::<BLOCK>();
        let first = hashes.len();
        hashes.resize(first + blocks.len(), 0);
        let mut state = keys[0];
        for (block, hash) in blocks.iter().zip(&mut hashes[first..]) {
            let lane = |at: usize| {
                let token = |offset: usize| block[4 * at + offset] as i32;
                _mm_set_epi32(token(3), token(2), token(1), token(0))
            };
            let keyed = |at: usize| _mm_xor_si128(lane(at), keys[at]);
            let (left, right) = (_mm_aesenc_si128(keyed(0), keyed(1)), _mm_aesenc_si128(keyed(2), keyed(3)));
            let digest = _mm_aesenc_si128(_mm_aesenc_si128(left, keys[4]), _mm_aesenc_si128(right, keys[5]));
            state = _mm_aesenc_si128(_mm_xor_si128(state, digest), keys[6]);
            *hash = _mm_cvtsi128_si64(_mm_aesenc_si128(_mm_aesenc_si128(state, keys[7]), keys[0])) as u64;
        }
    }
}
