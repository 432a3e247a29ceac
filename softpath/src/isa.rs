//! The packet loop, compiled again for CPUs with more instructions than every CPU of the architecture has.
//!
//! The code is the same, and safe; what differs is which instructions the compiler may choose: with 256 or 512-bit vectors
//! a key is masked and compared in a handful of them. Whoever owns a loop makes it a [`Job`], and [`Isa::run`] runs the copy
//! that suits this CPU. Whatever the job calls must be inlined into it (`#[inline(always)]`) to profit. Beside it stands the
//! one search that the compiler does badly.

#![allow(unsafe_code)]

/// Work that is compiled once for each set of instructions.
pub(crate) trait Job {
    /// Does it. To be marked `#[inline(always)]`.
    fn run(self);
}

/// A set of instructions. Its levels follow those of the x86-64 psABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// What the whole program is compiled for.
    Base,
    /// AVX2, BMI1, BMI2, MOVBE.
    #[cfg(target_arch = "x86_64")]
    V3,
    /// Besides, AVX-512 F, BW, CD, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    V4,
}

/// A set of instructions that this CPU has: only [`Isa::detect`] makes one beyond the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Level);

impl Isa {
    /// What every CPU of this architecture has.
    pub(crate) fn base() -> Self {
        Self(Level::Base)
    }

    /// The best that this CPU and its operating system have.
    pub(crate) fn detect() -> Self {
        Self::all().pop().unwrap_or(Self::base())
    }

    /// All that this CPU has, the best last.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::base()];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let v3 = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("movbe");
            if v3 {
                all.push(Self(Level::V3));
            }
            if v3
                && has!("avx512f")
                && has!("avx512bw")
                && has!("avx512cd")
                && has!("avx512dq")
                && has!("avx512vl")
            {
                all.push(Self(Level::V4));
            }
        }
        all
    }

    /// Runs the job's copy for this set.
    #[inline(always)]
    pub(crate) fn run(self, job: impl Job) {
        match self.0 {
            Level::Base => job.run(),
            // SAFETY: the field is private and `all`, which makes this value, has asked the CPU for every feature that
            // the function enables. Calling it is all that is unsafe: the job is safe code.
            #[cfg(target_arch = "x86_64")]
            Level::V3 => unsafe { v3(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::V4 => unsafe { v4(job) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
fn v3(job: impl Job) {
    job.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
fn v4(job: impl Job) {
    job.run();
}

/// Place of the first of eight words that is `word`; 8 or more if there is none.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn first_equal(words: &[u32; 8], word: u32) -> usize {
    use std::arch::x86_64::{
        _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32, _mm_set_epi32, _mm_set1_epi32,
        _mm_setzero_si128,
    };
    // By hand: the compiler makes 30 to 50 instructions of the loop below, with SSE2 as with AVX-512.
    let [a, b, c, d, e, f, g, h] = words.map(u32::cast_signed);
    // SAFETY: SSE2 is part of x86-64, and these work on values alone.
    let equal = unsafe {
        let want = _mm_set1_epi32(word.cast_signed());
        let low = _mm_cmpeq_epi32(_mm_set_epi32(d, c, b, a), want);
        let high = _mm_cmpeq_epi32(_mm_set_epi32(h, g, f, e), want);
        // A word that is equal has all bits set; packed to a byte each, and then to a bit each.
        _mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128()))
    };
    equal.trailing_zeros() as usize
}

/// Place of the first of eight words that is `word`; 8 or more if there is none.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn first_equal(words: &[u32; 8], word: u32) -> usize {
    let equal = (0..8).fold(0u32, |equal, i| equal | u32::from(words[i] == word) << i);
    equal.trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_words_is_found() {
        let words = [5, 7, 0, u32::MAX, 7, 1 << 31, 0x8000, 2];
        for word in words.into_iter().chain([1, 3, 0x7fff_ffff, 0xffff, 0xff]) {
            let found = Some(first_equal(&words, word)).filter(|place| *place < 8);
            assert_eq!(found, words.iter().position(|w| *w == word), "{word:#x}");
        }
    }

    struct Add<'a>(&'a [u64; 8], &'a [u64; 8], &'a mut [u64; 8]);

    impl Job for Add<'_> {
        #[inline(always)]
        fn run(self) {
            for i in 0..8 {
                self.2[i] = self.0[i].wrapping_add(self.1[i]) & 0xff;
            }
        }
    }

    #[test]
    fn each_set_of_this_cpu_runs_the_job() {
        assert_eq!(Isa::all().last(), Some(&Isa::detect()));
        for isa in Isa::all() {
            let mut sum = [0; 8];
            isa.run(Add(&[1, 2, 3, 4, 5, 6, 7, 0xff], &[2; 8], &mut sum));
            assert_eq!(sum, [3, 4, 5, 6, 7, 8, 9, 1], "{isa:?}");
        }
    }
}
