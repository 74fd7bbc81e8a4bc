//! Runs: consecutive 1-RTT packets of one size that carry consecutive pieces of one stream.
//!
//! Every packet is: first byte, connection id of 8 bytes, packet number of 2 bytes, then sealed one
//! STREAM frame (type, stream id, offset, perhaps a length, data). Sources: RFC 9000 sections 17.3 and
//! 19.8, RFC 9001 sections 5.3 and 5.4, docs/wire/quic.md 3.4.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring::aead::quic::{HeaderProtectionKey, AES_128, AES_256, CHACHA20};
use ring::aead::{
    Aad, LessSafeKey, Nonce, UnboundKey, AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305,
};

const CID: usize = 8;
const HEADER: usize = 1 + CID + 2;
const TAG: usize = 16;
const SAMPLE: usize = 16;
/// Where the header-protection sample stands: four bytes behind the start of the packet number.
const SAMPLE_AT: usize = 1 + CID + 4;
/// Bytes between two masks, as AES in ECB mode gives them; the first five count.
const MASK_STRIDE: usize = 16;
/// The largest frame head: type, stream id, offset, length.
const MOST_HEAD: usize = 1 + 8 + 8 + 8;
const FIXED: u8 = 0x40;
const SPIN: u8 = 0x20;
const TWO_BYTE_NUMBER: u8 = 0x01;
const STREAM_WITH_OFFSET: u8 = 0x0c;
const LENGTH: u8 = 0x02;
const FIN: u8 = 0x01;
const VARINT_4: u64 = 1 << 30;
const VARINT_8: u64 = 1 << 62;

fn wrong(text: &'static str) -> PyErr {
    PyValueError::new_err(text)
}

/// Packet number, stream id, offset and data of a run.
type Run<'py> = (u64, u64, u64, Bound<'py, PyBytes>);

/// The keys of one direction in one key phase.
#[pyclass(frozen, module = "dialkey_native")]
pub struct PacketKey {
    key: LessSafeKey,
    iv: [u8; 12],
    header: HeaderProtectionKey,
}

impl PacketKey {
    fn nonce(&self, path_id: u32, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, other) in nonce[..4].iter_mut().zip(path_id.to_be_bytes()) {
            *byte ^= other;
        }
        for (byte, other) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= other;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Open one packet of a run into `scratch`; false if it is not the packet that belongs here.
    fn open_one(
        &self,
        packet: &[u8],
        first: u8,
        path_id: u32,
        number: u64,
        scratch: &mut [u8],
    ) -> bool {
        let Ok(mask) = self.header.new_mask(&packet[SAMPLE_AT..SAMPLE_AT + SAMPLE]) else {
            return false;
        };
        let low = (number as u16).to_be_bytes();
        let unmasked = [
            packet[0] ^ (mask[0] & 0x1f),
            packet[9] ^ mask[1],
            packet[10] ^ mask[2],
        ];
        if unmasked != [first, low[0], low[1]] {
            return false;
        }
        let mut aad = [0; HEADER];
        aad.copy_from_slice(&packet[..HEADER]);
        aad[0] = first;
        aad[9..].copy_from_slice(&low);
        scratch.copy_from_slice(&packet[HEADER..]);
        self.key
            .open_in_place(self.nonce(path_id, number), Aad::from(aad), scratch)
            .is_ok()
    }
}

#[pymethods]
impl PacketKey {
    /// Args: "aes-128-gcm", "aes-256-gcm" or "chacha20-poly1305"; key; IV of 12 bytes; header key.
    #[new]
    fn new(suite: &str, key: &[u8], iv: &[u8], header: &[u8]) -> PyResult<Self> {
        let (aead, protection) = match suite {
            "aes-128-gcm" => (&AES_128_GCM, &AES_128),
            "aes-256-gcm" => (&AES_256_GCM, &AES_256),
            "chacha20-poly1305" => (&CHACHA20_POLY1305, &CHACHA20),
            _ => return Err(wrong("unknown cipher suite")),
        };
        Ok(PacketKey {
            key: LessSafeKey::new(UnboundKey::new(aead, key).map_err(|_| wrong("key length"))?),
            iv: iv.try_into().map_err(|_| wrong("the IV has 12 bytes"))?,
            header: HeaderProtectionKey::new(protection, header)
                .map_err(|_| wrong("header key length"))?,
        })
    }

    /// Return 16 bytes for each sample of 16 bytes; the first five are the mask, the others zero.
    fn masks<'py>(&self, py: Python<'py>, samples: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        if samples.len() % SAMPLE != 0 {
            return Err(wrong("samples have 16 bytes each"));
        }
        PyBytes::new_with(py, samples.len() / SAMPLE * MASK_STRIDE, |out| {
            for (sample, mask) in samples
                .chunks_exact(SAMPLE)
                .zip(out.chunks_exact_mut(MASK_STRIDE))
            {
                let five = self
                    .header
                    .new_mask(sample)
                    .map_err(|_| wrong("a sample"))?;
                mask[..5].copy_from_slice(&five);
            }
            Ok(())
        })
    }

    /// Seal `data` into consecutive packets of `size` bytes, the last one perhaps shorter.
    ///
    /// `head` is the frame's type and stream id; the offset follows in 4 bytes, or 8 if `wide`.
    #[allow(clippy::too_many_arguments)]
    fn seal_run<'py>(
        &self,
        py: Python<'py>,
        first: u8,
        cid: &[u8],
        path_id: u32,
        number: u64,
        head: &[u8],
        offset: u64,
        wide: bool,
        data: PyBuffer<u8>,
        size: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let width = if wide { 8 } else { 4 };
        let overhead = HEADER + head.len() + width + TAG;
        let data = data
            .as_slice(py)
            .ok_or_else(|| wrong("data is not contiguous"))?;
        if cid.len() != CID || head.len() > MOST_HEAD || size <= overhead + 4 || data.is_empty() {
            return Err(wrong("no such run"));
        }
        let room = size - overhead;
        let count = data.len().div_ceil(room);
        let end = offset.checked_add(data.len() as u64);
        let limit = if wide { VARINT_8 } else { VARINT_4 };
        if end.is_none_or(|end| end > limit) || number.checked_add(count as u64).is_none() {
            return Err(wrong("no such offset"));
        }
        PyBytes::new_with(py, data.len() + count * overhead, |out| {
            for (i, (packet, piece)) in out.chunks_mut(size).zip(data.chunks(room)).enumerate() {
                let number = number + i as u64;
                let at = offset + (i * room) as u64;
                packet[0] = first;
                packet[1..9].copy_from_slice(cid);
                packet[9..HEADER].copy_from_slice(&(number as u16).to_be_bytes());
                let mut aad = [0; HEADER];
                aad.copy_from_slice(&packet[..HEADER]);
                let body_end = packet.len() - TAG;
                let body = &mut packet[HEADER..body_end];
                let (front, rest) = body.split_at_mut(head.len());
                front.copy_from_slice(head);
                let (front, rest) = rest.split_at_mut(width);
                if wide {
                    front.copy_from_slice(&(at | 3 << 62).to_be_bytes());
                } else {
                    front.copy_from_slice(&(at as u32 | 2 << 30).to_be_bytes());
                }
                for (to, from) in rest.iter_mut().zip(piece) {
                    *to = from.get();
                }
                let tag = self
                    .key
                    .seal_in_place_separate_tag(self.nonce(path_id, number), Aad::from(aad), body)
                    .map_err(|_| wrong("cannot seal"))?;
                packet[body_end..].copy_from_slice(tag.as_ref());
                if packet.len() < SAMPLE_AT + SAMPLE {
                    return Err(wrong("the last packet is too short"));
                }
                let mask = self
                    .header
                    .new_mask(&packet[SAMPLE_AT..SAMPLE_AT + SAMPLE])
                    .map_err(|_| wrong("a sample"))?;
                packet[0] ^= mask[0] & 0x1f;
                packet[9] ^= mask[1];
                packet[10] ^= mask[2];
            }
            Ok(())
        })
    }

    /// Open packets of `segment` bytes each, if all of them together are a run.
    ///
    /// `phase` is the key phase bit that this key opens, `expected` the packet number after the largest
    /// one received. Returns (number, stream id, offset, data), or None if they are anything else.
    fn open_run<'py>(
        &self,
        py: Python<'py>,
        data: PyBuffer<u8>,
        segment: usize,
        path_id: u32,
        phase: u8,
        expected: u64,
    ) -> PyResult<Option<Run<'py>>> {
        let data = data.to_vec(py)?;
        if segment <= HEADER + TAG + MOST_HEAD || data.len() % segment != 0 || data.len() < segment
        {
            return Ok(None);
        }
        let count = data.len() / segment;
        let lead = &data[..segment];
        let Ok(mask) = self.header.new_mask(&lead[SAMPLE_AT..SAMPLE_AT + SAMPLE]) else {
            return Ok(None);
        };
        let first = lead[0] ^ (mask[0] & 0x1f);
        if first & !SPIN != FIXED | TWO_BYTE_NUMBER | (phase & 1) << 2 {
            return Ok(None);
        }
        let truncated = u16::from_be_bytes([lead[9] ^ mask[1], lead[10] ^ mask[2]]);
        let number = expand(truncated, expected);
        // Numbers of a run are new, and none of its packets wraps the two bytes.
        if number < expected
            || usize::from(truncated) + count > 1 << 16
            || number + count as u64 > VARINT_8
        {
            return Ok(None);
        }
        let cid = &lead[1..9];
        let size = segment - HEADER - TAG;
        let mut scratch = vec![0; size + TAG];
        if !self.open_one(lead, first, path_id, number, &mut scratch) {
            return Ok(None);
        }
        let Some(head) = Head::read(&scratch[..size]) else {
            return Ok(None);
        };
        let room = size - head.end;
        let limit = if head.width == 4 { VARINT_4 } else { VARINT_8 };
        if head.offset + (room * count) as u64 > limit {
            return Ok(None);
        }
        let expected_head: Vec<u8> = scratch[..head.end].to_vec();
        let joined = PyBytes::new_with(py, room * count, |out| {
            for (i, (packet, to)) in data
                .chunks_exact(segment)
                .zip(out.chunks_exact_mut(room))
                .enumerate()
            {
                if i > 0 {
                    if &packet[1..9] != cid
                        || !self.open_one(packet, first, path_id, number + i as u64, &mut scratch)
                    {
                        return Err(wrong(NOT_A_RUN));
                    }
                    let at = head.offset + (i * room) as u64;
                    let flag: u64 = if head.width == 4 { 2 << 30 } else { 3 << 62 };
                    let bytes = (at | flag).to_be_bytes();
                    if scratch[..head.offset_at] != expected_head[..head.offset_at]
                        || scratch[head.offset_at..head.offset_at + head.width]
                            != bytes[8 - head.width..]
                        || scratch[head.offset_at + head.width..head.end]
                            != expected_head[head.offset_at + head.width..]
                    {
                        return Err(wrong(NOT_A_RUN));
                    }
                }
                to.copy_from_slice(&scratch[head.end..size]);
            }
            Ok(())
        });
        match joined {
            Ok(joined) => Ok(Some((number, head.stream_id, head.offset, joined))),
            Err(error) if error.is_instance_of::<PyValueError>(py) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

const NOT_A_RUN: &str = "not a run";

/// The STREAM frame that fills the first packet of a run.
struct Head {
    stream_id: u64,
    offset: u64,
    offset_at: usize,
    width: usize,
    end: usize,
}

impl Head {
    /// Read it; None if the packet holds anything else, or the end of the stream.
    fn read(plain: &[u8]) -> Option<Head> {
        let kind = *plain.first()?;
        if kind & !(LENGTH | FIN) != STREAM_WITH_OFFSET || kind & FIN != 0 {
            return None;
        }
        let (stream_id, offset_at) = varint(plain, 1)?;
        let (offset, mut end) = varint(plain, offset_at)?;
        let width = end - offset_at;
        if width < 4 {
            return None;
        }
        if kind & LENGTH != 0 {
            let (length, data_at) = varint(plain, end)?;
            if length != (plain.len() - data_at) as u64 {
                return None;
            }
            end = data_at;
        }
        (end < plain.len()).then_some(Head {
            stream_id,
            offset,
            offset_at,
            width,
            end,
        })
    }
}

/// Read a variable-length integer at `at`; return it and where it ends.
fn varint(data: &[u8], at: usize) -> Option<(u64, usize)> {
    let length = 1usize << (data.get(at)? >> 6);
    let bytes = data.get(at..at + length)?;
    let value = bytes
        .iter()
        .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    // The two highest bits are the length.
    Some((value & (u64::MAX >> (66 - 8 * length)), at + length))
}

/// The packet number nearest to `expected` with these low bits (RFC 9000 appendix A.3).
fn expand(truncated: u16, expected: u64) -> u64 {
    let number = expected & !0xffff | u64::from(truncated);
    if number + 0x8000 <= expected && number < VARINT_8 - 0x1_0000 {
        number + 0x1_0000
    } else if number > expected + 0x8000 && number >= 0x1_0000 {
        number - 0x1_0000
    } else {
        number
    }
}
