//! BLAKE3 chaining values of subtrees, which the `blake3` wheel does not give.
//!
//! Source: the BLAKE3 paper, sections 2.4 and 2.5; docs/wire/blobs.md 3.1.

use std::sync::OnceLock;
use std::thread;

use blake3::hazmat::{merge_subtrees_non_root, merge_subtrees_root, HasherExt, Mode};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

const CHUNK: usize = 1024;
const CV: usize = 32;
/// Where a second thread pays: hashing takes half a millisecond then, and starting one some 20 us.
const SHARED: usize = 2 << 20;

/// Return the non-root chaining value of each piece of `size` bytes of `data`, the last perhaps shorter.
///
/// `size` is a power of two times 1,024; `start_chunk` is the chunk with which `data` starts, a multiple
/// of the chunks of a piece. `bytes` are read where they are, any other buffer is copied first. From
/// `SHARED` bytes on a second thread takes half of the work; other Python threads run in any case.
#[pyfunction]
pub fn group_cvs<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    start_chunk: u64,
    size: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let chunks = (size / CHUNK) as u64;
    if size % CHUNK != 0 || !chunks.is_power_of_two() || start_chunk % chunks != 0 {
        return Err(PyValueError::new_err("pieces are subtrees"));
    }
    let copy;
    let data = if let Ok(bytes) = data.cast::<PyBytes>() {
        bytes.as_bytes()
    } else {
        copy = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        &copy
    };
    let end = (data.len() as u64 / CHUNK as u64 + 1).checked_add(start_chunk);
    if end.is_none_or(|chunks| chunks > u64::MAX / CHUNK as u64) {
        return Err(PyValueError::new_err("no such chunk"));
    }
    let cvs = py.detach(|| {
        let pieces = data.len().div_ceil(size);
        let mut cvs = vec![0; pieces * CV];
        if data.len() < SHARED || pieces < 2 || !has_two_cores() {
            hash_pieces(data, start_chunk, size, &mut cvs);
            return cvs;
        }
        let (data, more) = data.split_at(pieces / 2 * size);
        let (first, second) = cvs.split_at_mut(pieces / 2 * CV);
        let middle = start_chunk + (data.len() / CHUNK) as u64;
        thread::scope(|scope| {
            scope.spawn(|| hash_pieces(more, middle, size, second));
            hash_pieces(data, start_chunk, size, first);
        });
        cvs
    });
    Ok(PyBytes::new(py, &cvs))
}

fn hash_pieces(data: &[u8], start_chunk: u64, size: usize, cvs: &mut [u8]) {
    let mut offset = start_chunk * CHUNK as u64;
    for (piece, cv) in data.chunks(size).zip(cvs.chunks_exact_mut(CV)) {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        cv.copy_from_slice(&hasher.update(piece).finalize_non_root());
        offset = offset.wrapping_add(size as u64);
    }
}

fn has_two_cores() -> bool {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |cores| cores.get())) > 1
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
