//! Merges an adapter's coefficients for one module into an array, and prints what came out.
//! Needs nothing but the standard library:
//!
//!     rustc -O merge_array.rs -L LIBDIR -l nola && LD_LIBRARY_PATH=LIBDIR ./merge_array

use std::ffi::{c_void, CStr, CString};
use std::os::raw::c_char;

/// nola.h's `nola_matrix`.
#[repr(C)]
struct Matrix {
    seed: u64,
    stream: u64,
    num_basis: u64,
    rows: u64,
    cols: u64,
    row_begin: u64,
    row_end: u64,
    col_begin: u64,
    col_end: u64,
    basis: i32,
}

/// nola.h's `nola_weight`.
#[repr(C)]
struct Weight {
    base: *const c_void,
    out: *mut c_void,
    rows: u64,
    cols: u64,
    base_stride: u64,
    out_stride: u64,
    kind: i32,
}

/// nola.h's `nola_update`.
#[repr(C)]
struct Update {
    b: *const f32,
    a: *const f32,
    rank: u64,
    scaling: f64,
}

extern "C" {
    fn nola_abi_version() -> u32;
    fn nola_last_error() -> *const c_char;
    fn nola_isa(name: *mut *const c_char) -> i32;
    fn nola_stream_id(module: *const c_char, factor: i32, stream: *mut u64) -> i32;
    fn nola_expand(matrix: *const Matrix, coefficients: *const f32, out: *mut f32, threads: i32)
        -> i32;
    fn nola_merge(weight: *const Weight, update: *const Update, threads: i32) -> i32;
}

const ABI_VERSION: u32 = 1;
const RADEMACHER: i32 = 0;
const FLOAT32: i32 = 0;
const OUTPUTS: usize = 256;
const INPUTS: usize = 512;
const RANK: usize = 8;
const BASIS: usize = 64;

fn checked(status: i32) -> Result<(), String> {
    match status {
        0 => Ok(()),
        _ => Err(unsafe { CStr::from_ptr(nola_last_error()) }.to_string_lossy().into_owned()),
    }
}

/// One factor of a module, whole.
fn expanded(name: u8, rows: usize, cols: usize, coefficients: &[f32]) -> Result<Vec<f32>, String> {
    let module = CString::new("model.layers.0.self_attn.q_proj").unwrap();
    let mut stream = 0;
    checked(unsafe { nola_stream_id(module.as_ptr(), name as i32, &mut stream) })?;
    let matrix = Matrix {
        seed: 42,
        stream,
        num_basis: coefficients.len() as u64,
        rows: rows as u64,
        cols: cols as u64,
        row_begin: 0,
        row_end: rows as u64,
        col_begin: 0,
        col_end: cols as u64,
        basis: RADEMACHER,
    };
    let mut out = vec![0.0; rows * cols];
    checked(unsafe { nola_expand(&matrix, coefficients.as_ptr(), out.as_mut_ptr(), 0) })?;
    Ok(out)
}

fn merge(weight: &mut [f32], b: &[f32], a: &[f32], scaling: f64) -> Result<(), String> {
    let place = Weight {
        base: weight.as_ptr().cast(),
        out: weight.as_mut_ptr().cast(),
        rows: OUTPUTS as u64,
        cols: INPUTS as u64,
        base_stride: INPUTS as u64,
        out_stride: INPUTS as u64,
        kind: FLOAT32,
    };
    let update = Update { b: b.as_ptr(), a: a.as_ptr(), rank: RANK as u64, scaling };
    checked(unsafe { nola_merge(&place, &update, 0) })
}

/// A float as C's `%a` prints it, for numbers that are neither subnormal nor zero.
fn hexadecimal(value: f32) -> String {
    let bits = f64::from(value).to_bits();
    let digits = format!("{:013x}", bits & ((1 << 52) - 1));
    let sign = if value < 0.0 { "-" } else { "" };
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023;
    let point = if digits.trim_end_matches('0').is_empty() { "" } else { "." };
    format!("{sign}0x1{point}{}p{exponent:+}", digits.trim_end_matches('0'))
}

fn main() -> Result<(), String> {
    if unsafe { nola_abi_version() } != ABI_VERSION {
        return Err("libnola has another ABI version than this program".into());
    }
    // The whole adapter for this module: a seed and 2 x 64 coefficients.
    let alpha: Vec<f32> = (0..BASIS).map(|i| 0.01 * i as f32).collect();
    let beta: Vec<f32> = (0..BASIS).map(|i| 0.01 * (BASIS - i) as f32).collect();
    let a = expanded(b'A', RANK, INPUTS, &alpha)?;
    let b = expanded(b'B', OUTPUTS, RANK, &beta)?;
    let mut weight = vec![1.0; OUTPUTS * INPUTS];
    merge(&mut weight, &b, &a, 2.0)?;

    let mut isa = std::ptr::null();
    checked(unsafe { nola_isa(&mut isa) })?;
    let isa = unsafe { CStr::from_ptr(isa) }.to_string_lossy();
    let first: Vec<String> = weight[..3].iter().map(|&value| hexadecimal(value)).collect();
    println!("{isa}: first merged weights {}", first.join(" "));
    Ok(())
}
