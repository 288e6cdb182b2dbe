//! The order of an epoch: a keyed permutation computed position by position.
//!
//! A Feistel network with cycle walking (after Black and Rogaway 2002): a cohort
//! of any size shuffles in no memory, and any batch can be asked for without the
//! ones before it.

use crate::Error;
use crate::error::Result;

const ROUNDS: u64 = 6;

/// A bijection of `0..n`, chosen by a seed and an epoch.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The permutation of `0..n` for this seed and epoch.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        let half_bits = bits.div_ceil(2).max(1);
        let key = mix(mix(seed) ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { n, half_bits, key }
    }

    /// The item at a position of the order; positions wrap at `n`.
    ///
    /// The network permutes the power of four above `n`; a value that falls
    /// outside is sent through again, fewer than four times on average.
    pub fn at(&self, position: u64) -> u64 {
        let mut value = position % self.n.max(1);
        loop {
            value = self.network(value);
            if value < self.n || self.n == 0 {
                return value;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let noise = mix(right ^ self.key.rotate_left(round as u32 * 11) ^ (round << 56));
            (left, right) = (right, left ^ (noise & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The finaliser of SplitMix64 (Steele et al. 2014): every bit reaches every other.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Replaces each position of the order of `0..n` by the item that stands there.
pub fn order(n: u64, seed: u64, epoch: u64, positions: &mut [i64]) -> Result<()> {
    let outside = |position: &&i64| !(0..n).contains(&(**position as u64));
    if let Some(&found) = positions.iter().find(outside) {
        let (what, bound) = ("position of an epoch", n as usize);
        return Err(Error::Index { what, bound, found });
    }
    let permutation = Permutation::new(n, seed, epoch);
    for position in positions {
        *position = permutation.at(*position as u64) as i64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_for_every_size() {
        for n in (0..70).chain([1000, 1023, 1024, 1025]) {
            let mut out = Vec::from_iter(0..n as i64);
            order(n as u64, 7, 3, &mut out).expect("positions in range");
            out.sort_unstable();
            assert!(out.iter().enumerate().all(|(i, &item)| item == i as i64));
        }
    }
}
