//! A vault whose objects are damaged, lost, cut short, exchanged: it is noticed, told what it touches, and never restored as
//! something else.

mod bits;
mod fixtures;
mod sample;
mod short;
mod swaps;
