// The requantized int8 matrix product of dot.py, with AVX-512 VNNI.
//
//   acc[m, n] = sum_k (x[m, k] - zero_x) w[k, n] + bias[n]      wraps mod 2^32
//   y[m, n] = clip(((acc multiplier[n] + 2^(shift-1)) >> shift) + zero)
//
// VNNI multiplies unsigned by signed bytes, so x is read as x + 128 and
// 128 + zero_x times the column's sum of weights is taken off again: exact,
// as all sums are modulo 2^32.
//
// One task is a panel of 64 columns by up to kRows rows. Weights come as they
// lie, [K, N] row-major; four rows of a panel are interleaved on the fly, so
// that the four products of one accumulator lie side by side.

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kColumns = 64;  // of a panel: four vectors of accumulators
constexpr int64_t kRows = 48;     // of a task
constexpr int64_t kDepth = 256;   // of a block: a packed one is 16 KiB
constexpr int64_t kTile = 6;      // rows whose accumulators fit in registers
constexpr int64_t kAlone = 1 << 16;  // products not worth a second thread

struct Problem {
  int64_t m, k, n;
  std::vector<uint8_t> x;  // [m, depth4], plus 128, padded with 128
  int64_t stride;
  const int8_t* w;
  const int32_t* bias;
  const int32_t* multiplier;
  bool one_bias, one_multiplier;
  void* out;
  int bytes;  // of one output
  int32_t zero_x, shift, zero, low, high;
};

// Rows k .. k+3 of 64 columns as four vectors of (16 columns) x (4 rows).
// Vector j holds, in lane l, columns 16 l + 4 j .. + 3.
struct Quad {
  __m512i v[4];
};

inline __mmask64 ColumnMask(int64_t width) {
  return width >= kColumns ? ~0ull : (1ull << width) - 1;
}

inline Quad Interleave(const int8_t* w, int64_t n, int64_t rows,
                       __mmask64 mask) {
  __m512i r[4];
  for (int i = 0; i < 4; ++i) {
    r[i] = i < rows ? _mm512_maskz_loadu_epi8(mask, w + i * n)
                    : _mm512_setzero_si512();
  }
  const __m512i a = _mm512_unpacklo_epi8(r[0], r[1]);
  const __m512i b = _mm512_unpackhi_epi8(r[0], r[1]);
  const __m512i c = _mm512_unpacklo_epi8(r[2], r[3]);
  const __m512i d = _mm512_unpackhi_epi8(r[2], r[3]);
  return {{_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c),
           _mm512_unpacklo_epi16(b, d), _mm512_unpackhi_epi16(b, d)}};
}

// acc[r][j] += x[r] . packed over `quads` groups of four, R rows at once.
// All loops over accumulators are unrolled: only then are they registers.
template <int R>
inline void Tile(const uint8_t* x, int64_t stride, const __m512i* packed,
                 int64_t quads, __m512i* acc) {
  __m512i sum[4 * R];
#pragma GCC unroll 32
  for (int i = 0; i < 4 * R; ++i) sum[i] = acc[i];
  for (int64_t q = 0; q < quads; ++q, packed += 4, x += 4) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, x + r * stride, 4);
      const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        sum[4 * r + j] = _mm512_dpbusd_epi32(sum[4 * r + j], xs, packed[j]);
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < 4 * R; ++i) acc[i] = sum[i];
}

using TileFn = void (*)(const uint8_t*, int64_t, const __m512i*, int64_t,
                        __m512i*);
constexpr TileFn kTiles[] = {nullptr, Tile<1>, Tile<2>, Tile<3>,
                             Tile<4>, Tile<5>, Tile<6>};

// Four vectors as Interleave leaves them, to 64 columns in order.
inline void InOrder(const __m512i* v, __m512i* out) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  out[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  out[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// Eight int32 accumulators to clipped codes in 64 bits.
inline __m512i Requantize8(__m256i acc, __m256i multiplier, const Problem& p) {
  const __m512i half = _mm512_set1_epi64(p.shift ? 1ll << (p.shift - 1) : 0);
  __m512i y = _mm512_mul_epi32(_mm512_cvtepi32_epi64(acc),
                               _mm512_cvtepi32_epi64(multiplier));
  y = _mm512_sra_epi64(_mm512_add_epi64(y, half), _mm_cvtsi32_si128(p.shift));
  y = _mm512_add_epi64(y, _mm512_set1_epi64(p.zero));
  y = _mm512_max_epi64(y, _mm512_set1_epi64(p.low));
  return _mm512_min_epi64(y, _mm512_set1_epi64(p.high));
}

inline void Store(const Problem& p, int64_t at, __mmask16 mask, __m512i acc,
                  __m512i multiplier) {
  const __m512i lo = Requantize8(_mm512_castsi512_si256(acc),
                                 _mm512_castsi512_si256(multiplier), p);
  const __m512i hi = Requantize8(_mm512_extracti64x4_epi64(acc, 1),
                                 _mm512_extracti64x4_epi64(multiplier, 1), p);
  const __m512i y = _mm512_inserti64x4(
      _mm512_castsi256_si512(_mm512_cvtepi64_epi32(lo)),
      _mm512_cvtepi64_epi32(hi), 1);
  if (p.bytes == 1) {
    _mm_mask_storeu_epi8(static_cast<int8_t*>(p.out) + at, mask,
                         _mm512_cvtepi32_epi8(y));
  } else if (p.bytes == 2) {
    _mm256_mask_storeu_epi16(static_cast<int16_t*>(p.out) + at, mask,
                             _mm512_cvtepi32_epi16(y));
  } else {
    _mm512_mask_storeu_epi32(static_cast<int32_t*>(p.out) + at, mask, y);
  }
}

void Panel(const Problem& p, int64_t n0, int64_t m0, int64_t m1) {
  alignas(64) __m512i acc[kRows * 4];
  alignas(64) __m512i packed[kDepth];
  const __m512i ones = _mm512_set1_epi8(1);
  const __mmask64 mask = ColumnMask(p.n - n0);
  const int64_t rows = m1 - m0;
  std::fill(acc, acc + 4 * rows, _mm512_setzero_si512());
  __m512i sums[4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, p.k - k0);
    const int64_t quads = (depth + 3) / 4;
    for (int64_t q = 0; q < quads; ++q) {
      const int8_t* w = p.w + (k0 + 4 * q) * p.n + n0;
      const Quad four = Interleave(w, p.n, depth - 4 * q, mask);
      for (int j = 0; j < 4; ++j) {
        packed[4 * q + j] = four.v[j];
        sums[j] = _mm512_dpbusd_epi32(sums[j], ones, four.v[j]);
      }
    }
    for (int64_t r = 0; r < rows; r += kTile) {
      const uint8_t* x = p.x.data() + (m0 + r) * p.stride + k0;
      kTiles[std::min(kTile, rows - r)](x, p.stride, packed, quads,
                                        acc + 4 * r);
    }
  }
  __m512i offset[4];
  InOrder(sums, offset);
  __m512i multiplier[4];
  for (int j = 0; j < 4; ++j) {
    const int64_t n = n0 + 16 * j;
    const __mmask16 part = static_cast<__mmask16>(mask >> (16 * j));
    const __m512i bias =
        p.one_bias ? _mm512_set1_epi32(p.bias[0])
                   : _mm512_maskz_loadu_epi32(part, p.bias + n);
    multiplier[j] = p.one_multiplier
                        ? _mm512_set1_epi32(p.multiplier[0])
                        : _mm512_maskz_loadu_epi32(part, p.multiplier + n);
    offset[j] = _mm512_sub_epi32(
        bias,
        _mm512_mullo_epi32(offset[j], _mm512_set1_epi32(128 + p.zero_x)));
  }
  for (int64_t r = 0; r < rows; ++r) {
    __m512i y[4];
    InOrder(acc + 4 * r, y);
    for (int j = 0; j < 4; ++j) {
      const __mmask16 part = static_cast<__mmask16>(mask >> (16 * j));
      if (!part) break;
      Store(p, (m0 + r) * p.n + n0 + 16 * j, part,
            _mm512_add_epi32(y[j], offset[j]), multiplier[j]);
    }
  }
}

// Tasks are claimed from a counter by the caller and by whoever of the pool
// comes in time; the caller waits for claimed tasks only, so a busy pool costs
// time but cannot lock up. A late thread finds nothing to claim.
struct Work {
  Problem problem;
  int64_t panels, chunks;
  std::atomic<int64_t> next{0}, done{0};

  int64_t Total() const { return panels * chunks; }

  void Run() {
    for (int64_t i; (i = next.fetch_add(1)) < Total();) {
      const int64_t n0 = (i % panels) * kColumns;
      const int64_t m0 = (i / panels) * kRows;
      Panel(problem, n0, m0, std::min(m0 + kRows, problem.m));
      done.fetch_add(1, std::memory_order_release);
    }
  }
};


ffi::Error Dot(ffi::ThreadPool pool, ffi::Buffer<ffi::S8> x,
               ffi::Buffer<ffi::S8> w, ffi::Buffer<ffi::S32> bias,
               ffi::Buffer<ffi::S32> multiplier,
               ffi::Result<ffi::AnyBuffer> out, int32_t zero_x, int32_t shift,
               int32_t zero, int32_t low, int32_t high) {
  auto work = std::make_shared<Work>();
  Problem& p = work->problem;
  p.m = x.dimensions()[0];
  p.k = x.dimensions()[1];
  p.n = w.dimensions()[1];
  if (p.m == 0 || p.n == 0) return ffi::Error::Success();
  p.stride = (p.k + 3) / 4 * 4;
  p.x.assign(p.m * p.stride, 128);
  for (int64_t m = 0; m < p.m; ++m) {
    const int8_t* from = x.typed_data() + m * p.k;
    uint8_t* to = p.x.data() + m * p.stride;
    for (int64_t k = 0; k < p.k; ++k) {
      to[k] = static_cast<uint8_t>(from[k]) ^ 0x80;
    }
  }
  p.w = w.typed_data();
  p.bias = bias.typed_data();
  p.multiplier = multiplier.typed_data();
  p.one_bias = bias.element_count() == 1;
  p.one_multiplier = multiplier.element_count() == 1;
  p.out = out->untyped_data();
  p.bytes = static_cast<int>(ffi::ByteWidth(out->element_type()));
  p.zero_x = zero_x;
  p.shift = shift;
  p.zero = zero;
  p.low = low;
  p.high = high;
  work->panels = (p.n + kColumns - 1) / kColumns;
  work->chunks = (p.m + kRows - 1) / kRows;
  if (p.m * p.k * p.n > kAlone) {
    const int64_t helpers = std::min(pool.num_threads(), work->Total()) - 1;
    for (int64_t i = 0; i < helpers; ++i) {
      pool.Schedule([work] { work->Run(); });
    }
  }
  work->Run();
  while (work->done.load(std::memory_order_acquire) < work->Total()) {
    _mm_pause();
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(S8bqatDot, Dot,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int32_t>("zero_x")
                                  .Attr<int32_t>("shift")
                                  .Attr<int32_t>("zero")
                                  .Attr<int32_t>("low")
                                  .Attr<int32_t>("high"));

// Whether this processor runs the product, and nothing quicker: with AMX, XLA's
// own product works on whole tiles.
extern "C" int S8bqatSuits() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  const bool amx_int8 = d >> 25 & 1;
  return __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && !amx_int8;
}
