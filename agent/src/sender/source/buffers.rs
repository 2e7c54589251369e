//! Buffers that are given away as chunks and taken back once nobody holds these any more, so that a large file needs
//! a handful of them and not one of each chunk.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Buffers of one size.
pub(super) struct Buffers {
    size: usize,
    /// The oldest first.
    given: VecDeque<Bytes>,
}

impl Buffers {
    /// Of `size` bytes each.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            given: VecDeque::new(),
        }
    }

    /// One to fill; what is in it is of no meaning.
    pub(super) fn take(&mut self) -> BytesMut {
        let back = self.given.pop_front().map(Bytes::try_into_mut);
        match back {
            Some(Ok(buffer)) => return buffer,
            Some(Err(held)) => self.given.push_front(held),
            None => {}
        }
        BytesMut::zeroed(self.size)
    }

    /// Gives away the first `length` bytes of one that was taken.
    pub(super) fn give(&mut self, buffer: BytesMut, length: usize) -> Bytes {
        let whole = buffer.freeze();
        let given = whole.slice(..length.min(whole.len()));
        if self.given.len() < MOST {
            self.given.push_back(whole);
        }
        given
    }
}

/// More than are on their way to the line at any time; further ones would be allocated each time.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_once_its_chunk_is_gone() {
        let mut buffers = Buffers::new(10);
        let first = buffers.take();
        let at = first.as_ptr();
        let mut chunk = buffers.give(first, 4);
        let second = buffers.take();
        assert_ne!(second.as_ptr(), at, "the first is held");
        drop(second);
        assert_eq!(chunk.len(), 4);
        let rest = chunk.split_off(2);
        drop(chunk);
        assert_ne!(buffers.take().as_ptr(), at, "a part of it is held");
        drop(rest);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (at, 10));
    }

    #[test]
    fn no_more_are_kept_than_are_of_use() {
        let mut buffers = Buffers::new(1);
        let chunks: Vec<_> = (0..2 * MOST)
            .map(|_| {
                let buffer = buffers.take();
                buffers.give(buffer, 1)
            })
            .collect();
        assert_eq!(buffers.given.len(), MOST);
        drop(chunks);
    }
}
