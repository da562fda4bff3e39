//! The vault, the writer and the cleaners, as far as the model has them.

use crate::checker::members;

pub(super) const P1: u8 = 0b0001;
pub(super) const P2: u8 = 0b0010;
pub(super) const OLD_PIECE: u8 = 0b100;
pub(super) const CLEANERS: [&str; 2] = ["C1", "C2"];

pub(super) fn own_pack(cleaner: usize) -> u8 {
    0b0100 << cleaner
}

pub(super) fn own_piece(cleaner: usize) -> u8 {
    1 << cleaner
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Outcome {
    Undecided,
    Aborted,
    Committed,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum WriterAt {
    Begin,
    ReadLog,
    Choose { condemned: u8 },
    Look { pack: u8 },
    Commit,
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum CleanerAt {
    Begin,
    Condemn,
    ReadLog,
    Sessions,
    Drain,
    Mark,
    Index,
    Decide,
    Piece,
    Commit,
    DeletePieces,
    DeletePacks,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Cleaner {
    pub(super) at: CleanerAt,
    /// It was killed while it had its maintenance session, and takes up no other.
    pub(super) session_is_lost: bool,
    /// The packs whose listings it has seen, ever: its copy of the index forgets nothing.
    pub(super) index: u8,
    /// What the log condemned when it was read. All of it is to go.
    pub(super) doomed: u8,
    pub(super) waits_for_writer: bool,
    pub(super) live: bool,
    /// The pieces that list doomed packs, and what its own piece lists in their place.
    pub(super) replaces: u8,
    pub(super) lists: u8,
}

pub(super) const IDLE: Cleaner = Cleaner {
    at: CleanerAt::Begin,
    session_is_lost: false,
    index: P1 | P2,
    doomed: 0,
    waits_for_writer: false,
    live: false,
    replaces: 0,
    lists: 0,
};

impl Cleaner {
    /// The next run knows what this one knows of the index.
    pub(super) fn begin_again(&mut self) {
        let Cleaner {
            session_is_lost, index, ..
        } = *self;
        *self = Cleaner {
            session_is_lost,
            index,
            ..IDLE
        };
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    pub(super) point_is_purged: bool,
    pub(super) packs: u8,
    pub(super) condemned: u8,
    pub(super) pieces: u8,
    /// What the pieces of the two maintenance sessions list, and what became of these.
    pub(super) listed: [u8; 2],
    pub(super) maintenance: [Outcome; 2],
    pub(super) writer: WriterAt,
    pub(super) written: Outcome,
    /// What the piece of the writer's session lists.
    pub(super) writer_lists: u8,
    pub(super) cleaners: [Cleaner; 2],
}

impl State {
    pub(super) fn piece(&self, piece: u8) -> u8 {
        match piece & self.pieces {
            0 => 0,
            OLD_PIECE => P1 | P2,
            own => self.listed[own.trailing_zeros() as usize],
        }
    }

    pub(super) fn is_counted(&self, piece: u8) -> bool {
        piece == OLD_PIECE || self.maintenance[piece.trailing_zeros() as usize] == Outcome::Committed
    }

    /// What those of some pieces list that committed sessions count, and the piece of the writer.
    pub(super) fn counted(&self, pieces: u8) -> u8 {
        let pieces = members(pieces)
            .map(|bit| 1 << bit)
            .filter(|piece| self.is_counted(*piece));
        let writer = if self.written == Outcome::Committed {
            self.writer_lists
        } else {
            0
        };
        pieces.fold(writer, |packs, piece| packs | self.piece(piece))
    }

    pub(super) fn listed(&self) -> u8 {
        members(self.pieces).fold(self.writer_lists, |packs, bit| packs | self.piece(1 << bit))
    }

    pub(super) fn writer_is_undecided(&self) -> bool {
        self.writer != WriterAt::Begin && self.written == Outcome::Undecided
    }

    /// The same, with C1 called C2, and with it what is theirs.
    pub(super) fn with_cleaners_exchanged(self) -> Self {
        let packs = |set: u8| set & (P1 | P2) | set << 1 & own_pack(1) | set >> 1 & own_pack(0);
        let pieces = |set: u8| set & OLD_PIECE | set << 1 & own_piece(1) | set >> 1 & own_piece(0);
        let cleaner = |cleaner: Cleaner| Cleaner {
            index: packs(cleaner.index),
            doomed: packs(cleaner.doomed),
            replaces: pieces(cleaner.replaces),
            lists: packs(cleaner.lists),
            ..cleaner
        };
        let writer = match self.writer {
            WriterAt::Choose { condemned } => WriterAt::Choose {
                condemned: packs(condemned),
            },
            WriterAt::Look { pack } => WriterAt::Look { pack: packs(pack) },
            other => other,
        };
        Self {
            packs: packs(self.packs),
            condemned: packs(self.condemned),
            pieces: pieces(self.pieces),
            listed: [packs(self.listed[1]), packs(self.listed[0])],
            maintenance: [self.maintenance[1], self.maintenance[0]],
            writer,
            writer_lists: packs(self.writer_lists),
            cleaners: [cleaner(self.cleaners[1]), cleaner(self.cleaners[0])],
            ..self
        }
    }

    pub(super) fn live(&self) -> bool {
        !self.point_is_purged || self.written == Outcome::Committed
    }
}
