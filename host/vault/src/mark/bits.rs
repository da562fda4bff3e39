//! One bit for each record of the index.

/// Bits, all clear at first.
#[derive(Debug)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    pub(crate) fn new(count: u64) -> Self {
        Self {
            words: vec![0; count.div_ceil(64) as usize],
        }
    }

    pub(crate) fn get(&self, at: u64) -> bool {
        self.words[(at / 64) as usize] & (1 << (at % 64)) != 0
    }

    /// Whether it was clear.
    pub(crate) fn set(&mut self, at: u64) -> bool {
        let word = &mut self.words[(at / 64) as usize];
        let was_clear = *word & (1 << (at % 64)) == 0;
        *word |= 1 << (at % 64);
        was_clear
    }
}
