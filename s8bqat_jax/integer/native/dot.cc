// The requantized int8 matrix product of dot.py, with AVX-512 VNNI.
//
//   acc[m, n] = sum_k (x[m, k] - zero_x) w[k, n] + bias[n]      wraps mod 2^32
//   y[m, n] = clip(((acc multiplier[n] + 2^(shift-1)) >> shift) + zero)
//
// VNNI multiplies unsigned by signed bytes, four products to an accumulator, so
// x is read as x + 128, and 128 + zero_x times the column's sum of weights is
// taken off again: exact, as all sums are modulo 2^32.
//
// Weights are packed by panels of 64 columns: quad q of a panel is four vectors
// of 16 columns, each with its weights 4 q .. 4 q + 3 side by side; the panel's
// last four vectors are the sums of its columns. Packing is an operation of its
// own, for a compiler to take out of a loop; a single row reads weights as they
// lie, since packing them would cost as much as their product.

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kColumns = 64;     // of a panel: four vectors
constexpr int64_t kRows = 48;        // of a task
constexpr int64_t kQuads = 256;      // at a time: 64 KiB of weights
constexpr int64_t kTile = 6;         // rows whose accumulators fit in registers
constexpr int64_t kAlone = 1 << 16;  // products not worth a second thread
constexpr int64_t kSpins = 1 << 14;  // before the core is left to others

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors of a packed panel: quads up to a multiple of 16, and the sums.
inline int64_t PanelVectors(int64_t k) { return CeilDiv(k, 64) * 64 + 4; }

inline __mmask64 Mask(int64_t count) {
  return count >= 64 ? ~0ull : (1ull << std::max<int64_t>(count, 0)) - 1;
}

// Transposes 4 x 4 lanes of 128 bits.
inline void TransposeLanes(const __m512i* v, __m512i_u* out) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  out[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  out[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

struct Weights {
  const int8_t* data;
  int64_t k, n;
  bool output_major;  // [n, k], not [k, n]
};

// Packs the panel at column n0 of weights [k, n]: interleaves four rows.
void PackRows(const Weights& w, int64_t n0, __m512i_u* to) {
  const __mmask64 mask = Mask(w.n - n0);
  for (int64_t k = 0; k < w.k; k += 4, to += 4) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = k + i < w.k
                 ? _mm512_maskz_loadu_epi8(mask, w.data + (k + i) * w.n + n0)
                 : _mm512_setzero_si512();
    }
    const __m512i a = _mm512_unpacklo_epi8(r[0], r[1]);
    const __m512i b = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi8(r[2], r[3]);
    const __m512i d = _mm512_unpackhi_epi8(r[2], r[3]);
    // Lane l of vector j is columns 16 l + 4 j .. + 3.
    const __m512i v[4] = {
        _mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c),
        _mm512_unpacklo_epi16(b, d), _mm512_unpackhi_epi16(b, d)};
    TransposeLanes(v, to);
  }
}

// Packs the panel at column n0 of weights [n, k]: transposes 16 columns by 16
// groups of four bytes at a time.
void PackColumns(const Weights& w, int64_t n0, __m512i_u* to) {
  for (int64_t j = 0; j < 4; ++j) {
    for (int64_t k = 0; k < w.k; k += 64) {
      const __mmask64 mask = Mask(w.k - k);
      __m512i a[16], b[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const int64_t n = n0 + 16 * j + i;
        a[i] = n < w.n ? _mm512_maskz_loadu_epi8(mask, w.data + n * w.k + k)
                       : _mm512_setzero_si512();
      }
#pragma GCC unroll 8
      for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      // Lane l of a[4 c + q] is group 4 l + q of columns 4 c .. 4 c + 3.
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const __m512i v[4] = {a[q], a[4 + q], a[8 + q], a[12 + q]};
        __m512i lanes[4];
        TransposeLanes(v, lanes);
#pragma GCC unroll 4
        for (int l = 0; l < 4; ++l) to[k + 4 * (4 * l + q) + j] = lanes[l];
      }
    }
  }
}

void PackPanel(const Weights& w, int64_t n0, __m512i_u* to) {
  w.output_major ? PackColumns(w, n0, to) : PackRows(w, n0, to);
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums[4] = {};
  const int64_t vectors = 4 * CeilDiv(w.k, 4);
  for (int64_t i = 0; i < vectors; i += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[j] = _mm512_dpbusd_epi32(sums[j], ones, to[i + j]);
    }
  }
  std::copy(sums, sums + 4, to + PanelVectors(w.k) - 4);
}

// acc[r] += x[r] . packed over `quads` groups of four, R rows at once. All loops
// over accumulators are unrolled: only then are they registers.
template <int R>
void Tile(const uint8_t* x, int64_t stride, const __m512i_u* packed,
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

using TileFn = void (*)(const uint8_t*, int64_t, const __m512i_u*, int64_t,
                        __m512i*);
constexpr TileFn kTiles[] = {nullptr, Tile<1>, Tile<2>, Tile<3>,
                             Tile<4>, Tile<5>, Tile<6>};

struct Output {
  void* data;
  int64_t n;
  ffi::DataType type;
  int32_t shift, zero, low, high;
};

// Eight products, of every second accumulator, to clipped codes less `zero`.
inline __m512i Requantize8(__m512i acc, __m512i multiplier, const Output& out) {
  const int64_t half = out.shift ? int64_t{1} << (out.shift - 1) : 0;
  __m512i y = _mm512_mul_epi32(acc, multiplier);
  y = _mm512_add_epi64(y, _mm512_set1_epi64(half));
  y = _mm512_sra_epi64(y, _mm_cvtsi32_si128(out.shift));
  y = _mm512_max_epi64(y, _mm512_set1_epi64(int64_t{out.low} - out.zero));
  return _mm512_min_epi64(y, _mm512_set1_epi64(int64_t{out.high} - out.zero));
}

inline void Store(const Output& out, int64_t at, __mmask16 mask, __m512i acc,
                  __m512i multiplier) {
  const __m512i even = Requantize8(acc, multiplier, out);
  const __m512i odd = Requantize8(_mm512_srli_epi64(acc, 32),
                                  _mm512_srli_epi64(multiplier, 32), out);
  const __m512i y = _mm512_add_epi32(
      _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32)),
      _mm512_set1_epi32(out.zero));
  if (out.type == ffi::S8) {
    _mm_mask_storeu_epi8(static_cast<int8_t*>(out.data) + at, mask,
                         _mm512_cvtepi32_epi8(y));
  } else if (out.type == ffi::S16) {
    _mm256_mask_storeu_epi16(static_cast<int16_t*>(out.data) + at, mask,
                             _mm512_cvtepi32_epi16(y));
  } else {
    _mm512_mask_storeu_epi32(static_cast<int32_t*>(out.data) + at, mask, y);
  }
}

// One number for all columns, or one for each.
struct PerColumn {
  const int32_t* data;
  bool one;

  __m512i Load(int64_t n, __mmask16 mask) const {
    return one ? _mm512_set1_epi32(*data)
               : _mm512_maskz_loadu_epi32(mask, data + n);
  }
};

struct Problem {
  int64_t m;
  std::unique_ptr<uint8_t[]> x;  // [m, stride], plus 128
  int64_t stride;                // a multiple of four, padded with anything
  Weights weights;
  const __m512i_u* packed;  // null if the weights are not
  PerColumn bias, multiplier;
  int32_t offset;  // 128 + zero_x
  Output out;
};

// Rows m0 .. m1 - 1 of the panel at column n0, already packed.
void Panel(const Problem& p, const __m512i_u* packed, int64_t n0, int64_t m0,
           int64_t m1) {
  __m512i acc[4 * kRows];
  const int64_t rows = m1 - m0;
  std::fill(acc, acc + 4 * rows, _mm512_setzero_si512());
  const int64_t quads = CeilDiv(p.weights.k, 4);
  for (int64_t q = 0; q < quads; q += kQuads) {
    for (int64_t r = 0; r < rows; r += kTile) {
      kTiles[std::min(kTile, rows - r)](
          p.x.get() + (m0 + r) * p.stride + 4 * q, p.stride, packed + 4 * q,
          std::min(kQuads, quads - q), acc + 4 * r);
    }
  }
  const __m512i_u* sums = packed + PanelVectors(p.weights.k) - 4;
  __mmask16 mask[4];
  __m512i multiplier[4], constant[4];
  for (int j = 0; j < 4; ++j) {
    const int64_t n = n0 + 16 * j;
    mask[j] = static_cast<__mmask16>(Mask(p.out.n - n));
    multiplier[j] = p.multiplier.Load(n, mask[j]);
    constant[j] = _mm512_sub_epi32(
        p.bias.Load(n, mask[j]),
        _mm512_mullo_epi32(sums[j], _mm512_set1_epi32(p.offset)));
  }
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Store(p.out, (m0 + r) * p.out.n + n0 + 16 * j, mask[j],
            _mm512_add_epi32(acc[4 * r + j], constant[j]), multiplier[j]);
    }
  }
}

// Tasks that the caller and whoever of the pool comes in time claim from a
// counter. The caller waits for claimed tasks only, so a busy pool costs time
// but cannot lock up; a late thread finds nothing to claim.
class Work {
 public:
  Work(int64_t total, std::function<void(int64_t)> task)
      : total_(total), task_(std::move(task)) {}

  static void Do(ffi::ThreadPool pool, int64_t threads, int64_t total,
                 std::function<void(int64_t)> task) {
    auto work = std::make_shared<Work>(total, std::move(task));
    for (int64_t i = 1; i < std::min(threads, total); ++i) {
      pool.Schedule([work] { work->Run(); });
    }
    work->Run();
    for (int64_t i = 0; work->done_.load(std::memory_order_acquire) < total;) {
      // Long waits are those for a thread that the system has put aside.
      ++i < kSpins ? _mm_pause() : std::this_thread::yield();
    }
  }

  void Run() {
    for (int64_t i; (i = next_.fetch_add(1)) < total_;) {
      task_(i);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

 private:
  const int64_t total_;
  const std::function<void(int64_t)> task_;
  std::atomic<int64_t> next_{0}, done_{0};
};

Weights WeightsOf(const ffi::AnyBuffer& w, bool output_major) {
  const auto d = w.dimensions();
  return {static_cast<const int8_t*>(w.untyped_data()),
          d[output_major ? 1 : 0], d[output_major ? 0 : 1], output_major};
}

ffi::Error Pack(ffi::ThreadPool pool, ffi::AnyBuffer w,
                ffi::Result<ffi::Buffer<ffi::S32>> packed, bool output_major) {
  const Weights weights = WeightsOf(w, output_major);
  auto* to = reinterpret_cast<__m512i_u*>(packed->typed_data());
  Work::Do(pool, pool.num_threads(), CeilDiv(weights.n, kColumns),
           [=](int64_t i) {
             PackPanel(weights, i * kColumns,
                       to + i * PanelVectors(weights.k));
           });
  return ffi::Error::Success();
}

ffi::Error Dot(ffi::ThreadPool pool, ffi::Buffer<ffi::S8> x, ffi::AnyBuffer w,
               ffi::Buffer<ffi::S32> bias, ffi::Buffer<ffi::S32> multiplier,
               ffi::Result<ffi::AnyBuffer> out, bool output_major,
               int32_t zero_x, int32_t shift, int32_t zero, int32_t low,
               int32_t high) {
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1];
  const int64_t n = out->dimensions()[1];
  const ffi::DataType type = out->element_type();
  if (type != ffi::S8 && type != ffi::S16 && type != ffi::S32) {
    return ffi::Error::InvalidArgument("codes must be int8, int16 or int32");
  }
  const int64_t stride = 4 * CeilDiv(k, 4);
  Problem p = {m,
               std::unique_ptr<uint8_t[]>(new uint8_t[m * stride]),
               stride,
               {nullptr, k, n, output_major},
               nullptr,
               {bias.typed_data(), bias.element_count() == 1},
               {multiplier.typed_data(), multiplier.element_count() == 1},
               static_cast<int32_t>(128u + static_cast<uint32_t>(zero_x)),
               {out->untyped_data(), n, type, shift, zero, low, high}};
  if (w.element_type() == ffi::S8) {
    p.weights = WeightsOf(w, output_major);
  } else {
    p.packed = static_cast<const __m512i_u*>(w.untyped_data());
  }
  for (int64_t r = 0; r < m; ++r) {
    const int8_t* from = x.typed_data() + r * k;
    uint8_t* to = p.x.get() + r * stride;
    for (int64_t i = 0; i < k; ++i) {
      to[i] = static_cast<uint8_t>(from[i]) ^ 0x80;
    }
  }
  const int64_t panels = CeilDiv(n, kColumns);
  const int64_t threads = m * k * n > kAlone ? pool.num_threads() : 1;
  Work::Do(pool, threads, panels * CeilDiv(m, kRows), [&p, panels](int64_t i) {
    const int64_t panel = i % panels, m0 = i / panels * kRows;
    const int64_t n0 = panel * kColumns, vectors = PanelVectors(p.weights.k);
    const int64_t m1 = std::min(m0 + kRows, p.m);
    if (p.packed) {
      Panel(p, p.packed + panel * vectors, n0, m0, m1);
    } else {
      thread_local std::vector<__m512i> scratch;
      scratch.resize(vectors);
      PackPanel(p.weights, n0, scratch.data());
      Panel(p, scratch.data(), n0, m0, m1);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(S8bqatPack, Pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<bool>("output_major"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(S8bqatDot, Dot,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("output_major")
                                  .Attr<int32_t>("zero_x")
                                  .Attr<int32_t>("shift")
                                  .Attr<int32_t>("zero")
                                  .Attr<int32_t>("low")
                                  .Attr<int32_t>("high"));

// Multiplications and additions of `rounds` rounds on registers alone.
extern "C" int64_t S8bqatPeak(int64_t rounds) {
  constexpr int kSums = 24;
  __m512i sums[kSums];
  const __m512i x = _mm512_set1_epi8(3), w = _mm512_set1_epi8(5);
#pragma GCC unroll 24
  for (int j = 0; j < kSums; ++j) sums[j] = x;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kSums; ++j) {
      asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[j]) : "v"(x), "v"(w));
    }
  }
  return rounds * kSums * 128;
}

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
