//! Memory in huge pages, where it is large: weights are read from end to end in every step, and with small pages finding out
//! where they are would take a good part of that time.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
/// What neighbours are taken from. The system gives memory only to what is written.
const CHUNK: usize = 32 << 20;

/// Pages of the system's, zeroed, which it gives when they are first touched.
struct Pages {
    /// In a huge page's beginning, where there are huge pages at all.
    start: NonNull<u8>,
    len: usize,
    mapped: NonNull<u8>,
    mapped_len: usize,
}

// SAFETY: it is plain memory; who writes to it sees to the rest.
unsafe impl Send for Pages {}
unsafe impl Sync for Pages {}

impl Pages {
    fn new(len: usize) -> Self {
        let is_huge = len >= HUGE_PAGE;
        let len = len
            .max(1)
            .next_multiple_of(if is_huge { HUGE_PAGE } else { 4096 });
        let mapped_len = if is_huge { len + HUGE_PAGE } else { len };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the system wants it.
        let mapped = unsafe {
            mm::mmap_anonymous(ptr::null_mut(), mapped_len, protection, MapFlags::PRIVATE)
        };
        let Some(mapped) = mapped
            .ok()
            .and_then(|mapped| NonNull::new(mapped.cast::<u8>()))
        else {
            handle_alloc_error(Layout::new::<u8>());
        };
        let mut start = mapped;
        if is_huge {
            // SAFETY: within the mapping, which is larger by a huge page.
            start = unsafe { mapped.add(mapped.align_offset(HUGE_PAGE)) };
            // SAFETY: advice about pages of our own. Where the system has no huge pages, nothing is lost.
            let _ = unsafe { mm::madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        }
        Self {
            start,
            len,
            mapped,
            mapped_len,
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped like this, and nobody has it any longer.
        let _ = unsafe { mm::munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
    }
}

/// Zeroed bytes that do not move, aligned to a cache line.
pub struct Buffer {
    pages: Arc<Pages>,
    offset: usize,
    len: usize,
}

/// The chunk that neighbours are taken from at the moment.
struct Chunk {
    pages: Arc<Pages>,
    /// How much of it is taken, and how much of it ever was.
    taken: usize,
    touched: usize,
}

static NEIGHBOURS: Mutex<Option<Chunk>> = Mutex::new(None);

impl Buffer {
    /// In pages of its own.
    pub fn zeroed(len: usize) -> Self {
        Self {
            pages: Arc::new(Pages::new(len)),
            offset: 0,
            len,
        }
    }

    /// Beside others that live about as long: all of them have huge pages, however small each is.
    pub fn beside_others(len: usize) -> Self {
        let mut neighbours = NEIGHBOURS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunk = match neighbours.take() {
            Some(chunk) if chunk.taken + len <= chunk.pages.len => chunk,
            _ => Chunk {
                pages: Arc::new(Pages::new(len.max(CHUNK))),
                taken: 0,
                touched: 0,
            },
        };
        let buffer = Self {
            pages: chunk.pages.clone(),
            offset: chunk.taken,
            len,
        };
        // Whoever had a part before has written to it. All other pages the system gives when they are first written, which is left
        // to those who write.
        let num_touched = chunk.touched.saturating_sub(buffer.offset).min(len);
        // SAFETY: nobody else has this part.
        unsafe { buffer.as_ptr::<u8>().write_bytes(0, num_touched) };
        chunk.taken = (buffer.offset + len).next_multiple_of(CACHE_LINE);
        chunk.touched = chunk.touched.max(chunk.taken);
        *neighbours = Some(chunk);
        buffer
    }

    pub fn num_bytes(&self) -> usize {
        self.len
    }

    pub fn as_ptr<T>(&self) -> *mut T {
        // SAFETY: within the pages.
        unsafe { self.pages.start.as_ptr().add(self.offset).cast() }
    }
}

impl Drop for Buffer {
    /// The last of the neighbours gives its part back to the next one.
    fn drop(&mut self) {
        let mut neighbours = NEIGHBOURS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = neighbours.as_mut()
            && Arc::ptr_eq(&chunk.pages, &self.pages)
            && chunk.taken == (self.offset + self.len).next_multiple_of(CACHE_LINE)
        {
            chunk.taken = self.offset;
        }
    }
}

/// Memory that grows with the largest step and is used again by the next kernel.
#[derive(Default)]
pub struct Scratch(Option<Buffer>);

impl Scratch {
    /// At least `len` bytes, with anything in them.
    pub fn at_least(&mut self, len: usize) -> &Buffer {
        if self
            .0
            .as_ref()
            .is_none_or(|buffer| buffer.num_bytes() < len)
        {
            self.0 = None; // first give back, then take
        }
        self.0.get_or_insert_with(|| Buffer::zeroed(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(buffer: &mut Buffer) -> &mut [u8] {
        // SAFETY: the buffer's own, and it outlives the slice.
        unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), buffer.num_bytes()) }
    }

    #[test]
    fn neighbours_are_zero_aligned_and_apart_whatever_was_there_before() {
        let mut buffers: Vec<Buffer> = Vec::new();
        for (n, len) in [1, 63, 64, 4096, CHUNK / 2, CHUNK / 2, CHUNK + 1, 7]
            .into_iter()
            .enumerate()
        {
            let mut spoiled = Buffer::beside_others(len);
            bytes(&mut spoiled).fill(0xff);
            drop(spoiled);
            let mut buffer = Buffer::beside_others(len);
            assert_eq!(buffer.as_ptr::<u8>().addr() % CACHE_LINE, 0);
            assert!(
                bytes(&mut buffer).iter().all(|byte| *byte == 0),
                "buffer {n}"
            );
            bytes(&mut buffer).fill(n as u8 + 1);
            buffers.push(buffer);
        }
        for (n, buffer) in buffers.iter_mut().enumerate() {
            assert!(
                bytes(buffer).iter().all(|byte| usize::from(*byte) == n + 1),
                "buffer {n}"
            );
        }
    }
}
