//! Rows of a table, copied to where a kernel wants them side by side.

/// `output[n] = table[rows[n]]`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LookUp {
    /// [any number of rows, row_size] float32.
    pub table: *const f32,
    pub row_size: usize,
    /// [rows] each a row of the table.
    pub rows: *const i64,
    pub num_rows: usize,
    /// [rows, row_size] float32.
    pub output: *mut f32,
}

/// # Safety
/// The pointers hold what `LookUp` says.
pub unsafe fn look_up(look_up: LookUp) {
    let size = look_up.row_size;
    for n in 0..look_up.num_rows {
        let row = *look_up.rows.add(n) as usize;
        std::ptr::copy_nonoverlapping(
            look_up.table.add(row * size),
            look_up.output.add(n * size),
            size,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_the_order_asked_for() {
        let table = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5];
        let mut output = [9.0; 8];
        // SAFETY: three rows of two are read, four are written.
        unsafe {
            look_up(LookUp {
                table: table.as_ptr(),
                row_size: 2,
                rows: [2, 0, 2].as_ptr(),
                num_rows: 3,
                output: output.as_mut_ptr(),
            });
        }
        assert_eq!(output, [2.0, 2.5, 0.0, 0.5, 2.0, 2.5, 9.0, 9.0]);
    }
}
