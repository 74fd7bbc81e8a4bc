//! BLAKE3 chaining values of subtrees, which the `blake3` wheel does not give.
//!
//! Source: the BLAKE3 paper, sections 2.4 and 2.5; docs/wire/blobs.md 3.1.

use blake3::hazmat::{merge_subtrees_non_root, merge_subtrees_root, HasherExt, Mode};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

const CHUNK: usize = 1024;
const CV: usize = 32;

/// Return the non-root chaining value of each piece of `size` bytes of `data`, the last perhaps shorter.
///
/// `size` is a power of two times 1,024; `start_chunk` is the chunk with which `data` starts, a multiple
/// of the chunks of a piece.
#[pyfunction]
pub fn group_cvs<'py>(
    py: Python<'py>,
    data: PyBuffer<u8>,
    start_chunk: u64,
    size: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let chunks = (size / CHUNK) as u64;
    if size % CHUNK != 0 || !chunks.is_power_of_two() || start_chunk % chunks != 0 {
        return Err(PyValueError::new_err("pieces are subtrees"));
    }
    let data = data.to_vec(py)?;
    let end = (data.len() as u64 / CHUNK as u64 + 1).checked_add(start_chunk);
    if end.is_none_or(|chunks| chunks > u64::MAX / CHUNK as u64) {
        return Err(PyValueError::new_err("no such chunk"));
    }
    // Other Python threads run meanwhile: import hashes on two.
    let cvs = py.detach(|| {
        let mut cvs = Vec::with_capacity(data.len().div_ceil(size) * CV);
        for (i, piece) in data.chunks(size).enumerate() {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset((start_chunk + i as u64 * chunks) * CHUNK as u64);
            cvs.extend_from_slice(&hasher.update(piece).finalize_non_root());
        }
        cvs
    });
    Ok(PyBytes::new(py, &cvs))
}

/// Return the chaining values of parents: 32 bytes for each pair of 32 in `pairs`.
///
/// With `root` there is one pair, and its value is the hash of the blob.
#[pyfunction]
pub fn parent_cvs<'py>(py: Python<'py>, pairs: &[u8], root: bool) -> PyResult<Bound<'py, PyBytes>> {
    if pairs.len() % (2 * CV) != 0 || (root && pairs.len() != 2 * CV) {
        return Err(PyValueError::new_err("pairs have 64 bytes"));
    }
    PyBytes::new_with(py, pairs.len() / 2, |out| {
        for (pair, cv) in pairs.chunks_exact(2 * CV).zip(out.chunks_exact_mut(CV)) {
            let (mut left, mut right) = ([0; CV], [0; CV]);
            left.copy_from_slice(&pair[..CV]);
            right.copy_from_slice(&pair[CV..]);
            if root {
                cv.copy_from_slice(merge_subtrees_root(&left, &right, Mode::Hash).as_bytes());
            } else {
                cv.copy_from_slice(&merge_subtrees_non_root(&left, &right, Mode::Hash));
            }
        }
        Ok(())
    })
}
