//! Memory aligned to cache lines, and to huge pages where it is large: weights are read from end to end in every step.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use rustix::mm::{Advice, madvise};

const CACHE_LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes that do not move.
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is plain memory; who writes to it sees to the rest.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    pub fn zeroed(len: usize) -> Self {
        let align = if len >= HUGE_PAGE {
            HUGE_PAGE
        } else {
            CACHE_LINE
        };
        let layout = Layout::from_size_align(len.max(1).next_multiple_of(CACHE_LINE), align)
            .expect("a length of real memory");
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        // SAFETY: advice about whole pages of our own memory, then a write to all of it.
        unsafe {
            if align == HUGE_PAGE {
                // Before the first touch. Where the system has no huge pages, nothing is lost.
                let _ = madvise(
                    start.as_ptr().cast(),
                    layout.size() / HUGE_PAGE * HUGE_PAGE,
                    Advice::LinuxHugepage,
                );
            }
            start.as_ptr().write_bytes(0, layout.size());
        }
        Self { start, layout }
    }

    pub fn num_bytes(&self) -> usize {
        self.layout.size()
    }

    pub fn as_ptr<T>(&self) -> *mut T {
        self.start.as_ptr().cast()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
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
