// Attention, and how far its maps are from a teacher's: forward and backward, written to be read.
//
//   nvcc -O3 -std=c++17 -ftz=true -Xptxas=-v -Xcompiler=-fPIC -shared
//        -gencode=arch=compute_90a,code=sm_90a -o attention_kl.so attention_kl.cu
//
// This is the slow one. kernels/triton_attention.py gives the same results on tensor cores, in any
// type; it is the fast one, and the one that `auto` takes. Here every number is a float, every
// product a loop, and every line of kernels/README.md that is computed has its number beside it:
//
//   (1) scores   (2) maps   (3) dropout   (4) out   (5)-(7) divergences   (8), (9) stat
//   (10) delta   (11), (12) gradient of the scores   (13) dq   (14) dk   (15) dv
//
// A batch is a row of N tokens, sequence after sequence; attention never crosses from one to the
// next. A row r = i H + h of the maps is what query i of head h says of the keys of its sequence.
// Versions, simplest first, three kernels each (forward, dq, dkdv):
//
//   naive   a thread takes a row of the maps, and walks over its keys three times
//   warp    32 threads take a row, and walk once: the sums of (5)-(7) run along in registers
//
// No map is stored. Each result has one owner: no atomics, and results repeat bit for bit. Called
// from kernels/cuda_attention.py; tests/kernels/emulator runs this very file on a CPU.

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#ifndef REAL
#define REAL float  // double for derivatives by differences, which floats are too coarse for
#endif
using real = REAL;

constexpr int WARP = 32;
constexpr int MAX_THREADS = 256;  // so that a thread can have 255 registers
constexpr int MAX_WIDTH = 256;       // of a student's head, in the version `warp`
constexpr real LOWEST = -1e30f;      // a maximum before any score: finite, as inf - inf is NaN
constexpr unsigned EVERY_LANE = 0xffffffffu;
enum Divergence { NONE, KL_ST, KL_TS, MSE_MAPS };

// One of q, k, v, q_t, k_t: (N, H, D), neighbours along D.
struct Heads {
  const real* x;
  int64_t s_n, s_h;  // strides, in elements
  __device__ const real* at(int64_t n, int h) const { return x + n * s_n + h * s_h; }
};

// The arguments, in the order of kernels/cuda_attention.py. Null: not there.
struct Call {
  Heads q, k, v, q_t, k_t;
  const uint8_t* keep;        // (N, H, s_keep) dropout's bits; or null, and
  const int64_t* seed;        // (1) what they follow from; both null: no dropout
  const int64_t* cu_seqlens;  // (B+1) where the sequences begin, and the end
  const real* lse_t;          // (N, H) given to forward, or null; in backward always there
  const real* stat;           // (N, H) backward: the divergence for kl_st, (8) for mse_maps
  const real* dout;           // (N, H, D) backward: the gradient of out
  const real* g;              // (N, H) backward: that of the rows' divergence, or null
  real* out;                  // (N, H, D)
  real* row;                  // (N, H) forward: the divergence
  real* lse;                  // (N, H)
  real* lse_t_out;            // (N, H) forward: the teacher's, or null
  real* stat_out;             // (N, H) forward: (8), or null
  real* delta;                // (N, H) backward: (10)
  real *dq, *dk, *dv;         // (N, H, D) backward
  int64_t N, B, s_keep;
  int32_t H, D, D_t, divergence;
  uint32_t threshold;  // dropout takes an entry whose 16 random bits are below
  double scale, scale_t, keep_scale;
};

// ---- what all kernels share --------------------------------------------------------------------

// The keys that token i attends to, and the queries that attend to it: first .. last - 1.
struct Span {
  int64_t first, last;
};

// A search for the last boundary that is not beyond i. A boundary beyond the row is cut to it.
__device__ inline Span sequence_of(const Call& a, int64_t i) {
  int64_t low = 0, high = a.B;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.cu_seqlens[middle] <= i ? low : high) = middle;
  }
  const int64_t last = a.cu_seqlens[high];
  return {a.cu_seqlens[low], last < a.N ? last : a.N};
}

__device__ inline real dot(const real* x, const real* y, int D) {
  real sum = 0;
  for (int d = 0; d < D; ++d) sum += x[d] * y[d];
  return sum;
}

// (1): student's and teacher's score of key j by query i.
struct Scores {
  real s, t;
};
__device__ inline Scores scores_of(const Call& a, int64_t i, int64_t j, int h) {
  Scores z = {real(a.scale) * dot(a.q.at(i, h), a.k.at(j, h), a.D), 0};
  if (a.divergence != NONE) z.t = real(a.scale_t) * dot(a.q_t.at(i, h), a.k_t.at(j, h), a.D_t);
  return z;
}

// A 32-bit hash: every bit of x reaches every bit of the result (Wellons' lowbias32).
__device__ inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The factor of (3): 0 where dropout takes the entry, else 1 / (1 - p). `j` counts from the
// sequence's first key. A word of random bits follows from (seed, row, key), so that backward finds
// the mask of forward again; it is the one of kernels/triton_attention.py.
__device__ inline real kept(const Call& a, int64_t r, int64_t j) {
  bool is_kept = true;
  if (a.keep != nullptr) {
    is_kept = (a.keep[r * a.s_keep + j / 8] >> (j % 8)) & 1;
  } else if (a.seed != nullptr) {
    const auto low = static_cast<uint32_t>(*a.seed), high = static_cast<uint32_t>(*a.seed >> 32);
    const uint32_t first = mix(low ^ mix(high)), second = mix(first ^ high);
    const auto row = static_cast<uint32_t>(r), word = static_cast<uint32_t>(j / 16 * 8 + j % 8);
    uint32_t x = row * 0xe35e67b1u + first + word * 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15) ^ second) * 0x846ca68bu;
    is_kept = (j & 8 ? x >> 16 : x & 0xffffu) >= a.threshold;
  }
  return is_kept ? real(a.keep_scale) : real(0);
}

// Of backward: one entry of the map after dropout, and the gradient of its score.
struct Entry {
  real w, dz;
};
__device__ inline Entry entry_of(const Call& a, int64_t i, int64_t j, int h, Span span,
                                 real delta) {
  const int64_t r = i * a.H + h;
  const Scores z = scores_of(a, i, j, h);
  const real log_a_s = z.s - a.lse[r], a_s = exp(log_a_s);  // (2)
  const real keep = kept(a, r, j - span.first);
  const real dw = keep * dot(a.dout + r * a.D, a.v.at(j, h), a.D);
  if (a.divergence == NONE) return {keep * a_s, a_s * (dw - delta)};
  const real g = a.g[r], log_a_t = z.t - a.lse_t[r], a_t = exp(log_a_t);
  real x = dw - delta;  // (11)
  if (a.divergence == KL_ST) x += g * (log_a_s - log_a_t);
  if (a.divergence == MSE_MAPS) x += 2 * g * (a_s - a_t);
  real dz = a_s * x;  // (12)
  if (a.divergence == KL_TS) dz += g * (a_s - a_t);
  return {keep * a_s, dz};
}

// (10) without its first summand, do . out
__device__ inline real delta_of_divergence(const Call& a, int64_t r) {
  if (a.divergence == KL_ST) return a.g[r] * a.stat[r];
  if (a.divergence == MSE_MAPS) return 2 * a.g[r] * a.stat[r];
  return 0;
}

// ---- version 1: naive --------------------------------------------------------------------------
//
// Each thread has its own row of the maps, and uses the formulas as written.

__device__ inline int64_t naive_row() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

__global__ void __launch_bounds__(MAX_THREADS, 1) naive_forward(Call a) {
  const int64_t r = naive_row(), i = r / a.H;
  if (i >= a.N) return;
  const int h = static_cast<int>(r % a.H);
  const Span span = sequence_of(a, i);
  const bool has_teacher = a.divergence != NONE;

  Scores m = {-INFINITY, -INFINITY};  // the largest scores, so that no power overflows
  for (int64_t j = span.first; j < span.last; ++j) {
    const Scores z = scores_of(a, i, j, h);
    m = {fmax(m.s, z.s), fmax(m.t, z.t)};
  }
  real l_s = 0, l_t = 0;
  for (int64_t j = span.first; j < span.last; ++j) {
    const Scores z = scores_of(a, i, j, h);
    l_s += exp(z.s - m.s);
    l_t += exp(z.t - m.t);
  }
  const real lse_s = m.s + log(l_s);
  const real lse_t = a.lse_t != nullptr ? a.lse_t[r] : m.t + log(l_t);

  real* out = a.out + r * a.D;  // of this thread only: the sums are kept in place
  real row = 0, stat = 0;
  for (int d = 0; d < a.D; ++d) out[d] = 0;
  for (int64_t j = span.first; j < span.last; ++j) {
    const Scores z = scores_of(a, i, j, h);
    const real log_a_s = z.s - lse_s, a_s = exp(log_a_s);  // (2)
    const real w = kept(a, r, j - span.first) * a_s;       // (3)
    for (int d = 0; d < a.D; ++d) out[d] += w * a.v.at(j, h)[d];  // (4)
    if (!has_teacher) continue;
    const real log_a_t = z.t - lse_t, a_t = exp(log_a_t);
    if (a.divergence == KL_ST) row += a_s * (log_a_s - log_a_t);          // (5)
    if (a.divergence == KL_TS) row += a_t * (log_a_t - log_a_s);          // (6)
    if (a.divergence == MSE_MAPS) row += (a_s - a_t) * (a_s - a_t);       // (7)
    stat += a_s * (a_s - a_t);                                            // (8)
  }
  a.lse[r] = lse_s;
  if (has_teacher) a.row[r] = row;
  if (a.lse_t_out != nullptr) a.lse_t_out[r] = lse_t;
  if (a.stat_out != nullptr) a.stat_out[r] = stat;
}

// A row of the maps again, for the gradient of its query.
__global__ void __launch_bounds__(MAX_THREADS, 1) naive_dq(Call a) {
  const int64_t r = naive_row(), i = r / a.H;
  if (i >= a.N) return;
  const int h = static_cast<int>(r % a.H);
  const Span span = sequence_of(a, i);
  const real delta = dot(a.dout + r * a.D, a.out + r * a.D, a.D) + delta_of_divergence(a, r);
  a.delta[r] = delta;  // (10)
  real* dq = a.dq + r * a.D;
  for (int d = 0; d < a.D; ++d) dq[d] = 0;
  for (int64_t j = span.first; j < span.last; ++j) {
    const real dz = real(a.scale) * entry_of(a, i, j, h, span, delta).dz;
    for (int d = 0; d < a.D; ++d) dq[d] += dz * a.k.at(j, h)[d];  // (13)
  }
}

// A column of the maps: j is the key, and the walk goes over the queries.
__global__ void __launch_bounds__(MAX_THREADS, 1) naive_dkdv(Call a) {
  const int64_t r = naive_row(), j = r / a.H;
  if (j >= a.N) return;
  const int h = static_cast<int>(r % a.H);
  const Span span = sequence_of(a, j);
  real *dk = a.dk + r * a.D, *dv = a.dv + r * a.D;
  for (int d = 0; d < a.D; ++d) dk[d] = dv[d] = 0;
  for (int64_t i = span.first; i < span.last; ++i) {
    const Entry e = entry_of(a, i, j, h, span, a.delta[i * a.H + h]);
    const real dz = real(a.scale) * e.dz;
    for (int d = 0; d < a.D; ++d) {
      dk[d] += dz * a.q.at(i, h)[d];                    // (14)
      dv[d] += e.w * a.dout[(i * a.H + h) * a.D + d];   // (15)
    }
  }
}

// ---- version 2: a warp -------------------------------------------------------------------------
//
// The 32 threads of a warp, its lanes, take a row together and walk over its keys 32 at a time, in
// two roles by turns:
//
//   a key each       lane n has key first + n: its score, its share of every sum
//   a column each    lane n has columns n, n + 32, ... of the result: it adds up w_j v_j[d], and
//                    each lane hands round the w_j that it has found, by a shuffle
//
// Lanes pass values to each other without memory, so there is no barrier and no shared memory. A
// head of up to 32 C columns gives each lane C of them; C is known to the compiler, so that they
// are registers.

template <typename Op>
__device__ inline real over_warp(real value, Op op) {
#pragma unroll
  for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
    value = op(value, __shfl_xor_sync(EVERY_LANE, value, lanes));
  }
  return value;
}
__device__ inline real max_of_warp(real value) {
  return over_warp(value, [](real x, real y) { return fmax(x, y); });
}
__device__ inline real sum_of_warp(real value) {
  return over_warp(value, [](real x, real y) { return x + y; });
}

__device__ inline int64_t warp_row() { return naive_row() / WARP; }
__device__ inline int lane_of() { return static_cast<int>(threadIdx.x % WARP); }

// A row of results while it is summed: this lane's columns.
template <int C>
struct Columns {
  real x[C] = {};
  // x += factor * row[:D]
  __device__ void add(real factor, const real* row, int D) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int d = lane_of() + c * WARP;
      if (d < D) x[c] += factor * row[d];
    }
  }
  __device__ void multiply(real factor) {
#pragma unroll
    for (int c = 0; c < C; ++c) x[c] *= factor;
  }
  __device__ void store(real* row, int D) const {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int d = lane_of() + c * WARP;
      if (d < D) row[d] = x[c];
    }
  }
};

// The sums of one walk: relative to the largest scores so far, m_s and m_t, which are the same in
// all lanes; each lane has those of its own keys, and they are added up at the end.
struct Sums {
  real m_s, m_t;
  real l_s, l_t;    // of e_s = exp(z_s - m_s), of e_t
  real st, ts;      // (5) of e_s (z_s - z_t), (6) of e_t (z_t - z_s)
  real ss, x, tt;   // (7) of e_s^2, e_s e_t, e_t^2
};

// The largest scores become m_s and m_t: every sum shrinks by what its powers shrink by.
__device__ inline void move(Sums& r, real m_s, real m_t, real shrink_s, real shrink_t) {
  r.m_s = m_s;
  r.m_t = m_t;
  r.l_s *= shrink_s;
  r.l_t *= shrink_t;
  r.st *= shrink_s;
  r.ts *= shrink_t;
  r.ss *= shrink_s * shrink_s;
  r.x *= shrink_s * shrink_t;
  r.tt *= shrink_t * shrink_t;
}

template <int C>
__global__ void __launch_bounds__(MAX_THREADS, 1) warp_forward(Call a) {
  const int64_t r = warp_row(), i = r / a.H;
  if (i >= a.N) return;  // the whole warp
  const int h = static_cast<int>(r % a.H), lane = lane_of();
  const Span span = sequence_of(a, i);
  const bool has_teacher = a.divergence != NONE, is_given = a.lse_t != nullptr;

  Sums sums = {LOWEST, LOWEST, 0, 0, 0, 0, 0, 0, 0};
  if (is_given) sums.m_t = a.lse_t[r];  // as if it were the largest score: l_t will come to 1
  Columns<C> out;
  for (int64_t first = span.first; first < span.last; first += WARP) {
    // a key each; a lane beyond the end has powers of 0
    const int64_t j = first + lane;
    const bool is_key = j < span.last;
    const Scores z = is_key ? scores_of(a, i, j, h) : Scores{LOWEST, LOWEST};
    const real m_s = fmax(sums.m_s, max_of_warp(z.s));
    const real m_t = is_given ? sums.m_t : fmax(sums.m_t, max_of_warp(z.t));
    const real shrink_s = exp(sums.m_s - m_s), shrink_t = exp(sums.m_t - m_t);
    move(sums, m_s, m_t, shrink_s, shrink_t);
    const real e_s = exp(z.s - m_s), e_t = exp(z.t - m_t);
    sums.l_s += e_s;
    if (has_teacher && is_key) {
      sums.l_t += e_t;
      sums.st += e_s * (z.s - z.t);
      sums.ts += e_t * (z.t - z.s);
      sums.ss += e_s * e_s;
      sums.x += e_s * e_t;
      sums.tt += e_t * e_t;
    }
    const real w = is_key ? kept(a, r, j - span.first) * e_s : real(0);  // (3) times l_s

    // a column each
    out.multiply(shrink_s);
    for (int n = 0; n < WARP && first + n < span.last; ++n) {
      out.add(__shfl_sync(EVERY_LANE, w, n), a.v.at(first + n, h), a.D);  // (4) times l_s
    }
  }

  const real l_s = sum_of_warp(sums.l_s), lse_s = sums.m_s + log(l_s);
  out.multiply(1 / l_s);
  out.store(a.out + r * a.D, a.D);
  if (lane == 0) a.lse[r] = lse_s;
  if (!has_teacher) return;
  const real l_t = is_given ? real(1) : sum_of_warp(sums.l_t), lse_t = sums.m_t + log(l_t);
  real row = 0, stat = 0;
  if (a.divergence == KL_ST) row = sum_of_warp(sums.st) / l_s - lse_s + lse_t;  // (5)
  if (a.divergence == KL_TS) row = sum_of_warp(sums.ts) / l_t - lse_t + lse_s;  // (6)
  if (a.divergence == MSE_MAPS) {                                             // (7)
    const real ss = sum_of_warp(sums.ss) / (l_s * l_s), x = sum_of_warp(sums.x) / (l_s * l_t);
    row = ss - 2 * x + sum_of_warp(sums.tt) / (l_t * l_t);
    stat = ss - x;  // (9)
  }
  if (lane != 0) return;
  a.row[r] = row;
  if (a.lse_t_out != nullptr) a.lse_t_out[r] = lse_t;
  if (a.stat_out != nullptr) a.stat_out[r] = stat;
}

template <int C>
__global__ void __launch_bounds__(MAX_THREADS, 1) warp_dq(Call a) {
  const int64_t r = warp_row(), i = r / a.H;
  if (i >= a.N) return;
  const int h = static_cast<int>(r % a.H), lane = lane_of();
  const Span span = sequence_of(a, i);
  const real* dout = a.dout + r * a.D;
  real delta = 0;
  for (int d = lane; d < a.D; d += WARP) delta += dout[d] * a.out[r * a.D + d];
  delta = sum_of_warp(delta) + delta_of_divergence(a, r);  // (10)
  if (lane == 0) a.delta[r] = delta;

  Columns<C> dq;
  for (int64_t first = span.first; first < span.last; first += WARP) {
    const int64_t j = first + lane;  // a key each
    const real dz = j < span.last ? entry_of(a, i, j, h, span, delta).dz : real(0);
    for (int n = 0; n < WARP && first + n < span.last; ++n) {  // a column each
      dq.add(__shfl_sync(EVERY_LANE, dz, n), a.k.at(first + n, h), a.D);
    }
  }
  dq.multiply(real(a.scale));
  dq.store(a.dq + r * a.D, a.D);  // (13)
}

template <int C>
__global__ void __launch_bounds__(MAX_THREADS, 1) warp_dkdv(Call a) {
  const int64_t r = warp_row(), j = r / a.H;
  if (j >= a.N) return;
  const int h = static_cast<int>(r % a.H), lane = lane_of();
  const Span span = sequence_of(a, j);
  Columns<C> dk, dv;
  for (int64_t first = span.first; first < span.last; first += WARP) {
    const int64_t i = first + lane;  // a query each
    Entry e = {0, 0};
    if (i < span.last) e = entry_of(a, i, j, h, span, a.delta[i * a.H + h]);
    for (int n = 0; n < WARP && first + n < span.last; ++n) {  // a column each
      dk.add(__shfl_sync(EVERY_LANE, e.dz, n), a.q.at(first + n, h), a.D);
      dv.add(__shfl_sync(EVERY_LANE, e.w, n), a.dout + ((first + n) * a.H + h) * a.D, a.D);
    }
  }
  dk.multiply(real(a.scale));
  dk.store(a.dk + r * a.D, a.D);  // (14)
  dv.store(a.dv + r * a.D, a.D);  // (15)
}

// ---- the launch --------------------------------------------------------------------------------

using Kernel = void (*)(Call);

// The kernel for heads of D: each lane has 1, 2 or 8 columns.
static Kernel for_width(int D, Kernel one, Kernel two, Kernel eight) {
  return D <= WARP ? one : D <= 2 * WARP ? two : eight;
}

// One thread, or one warp, for each of the N H rows.
static cudaError_t launch(const Call& a, Kernel kernel, int lanes, int threads,
                          cudaStream_t stream) {
  const int64_t n = a.N * a.H * lanes;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((n + threads - 1) / threads));
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, a);
}

static bool is_right(const Call& a, int version, int threads) {
  const bool is_whole = threads >= WARP && threads <= MAX_THREADS && threads % WARP == 0;
  return is_whole && (version == 1 || (version == 2 && a.D <= MAX_WIDTH));
}

// Version 1 or 2 on the current device, with 32 to 256 threads a block, a multiple of 32.
// Returns a cudaError_t; the results are there when `stream` has come this far.
extern "C" int attention_forward(const Call* a, int version, int threads, void* stream) {
  if (!is_right(*a, version, threads)) return cudaErrorInvalidValue;
  if (a->N == 0) return cudaSuccess;  // no block: nothing that could be launched
  const auto on = static_cast<cudaStream_t>(stream);
  if (version == 1) return launch(*a, naive_forward, 1, threads, on);
  const auto forward = for_width(a->D, warp_forward<1>, warp_forward<2>, warp_forward<8>);
  return launch(*a, forward, WARP, threads, on);
}

// dq first: it leaves delta behind, which dkdv reads.
extern "C" int attention_backward(const Call* a, int version, int threads, void* stream) {
  if (!is_right(*a, version, threads)) return cudaErrorInvalidValue;
  if (a->N == 0) return cudaSuccess;
  const auto on = static_cast<cudaStream_t>(stream);
  const int lanes = version == 1 ? 1 : WARP;
  const auto dq = for_width(a->D, warp_dq<1>, warp_dq<2>, warp_dq<8>);
  const auto dkdv = for_width(a->D, warp_dkdv<1>, warp_dkdv<2>, warp_dkdv<8>);
  const cudaError_t error = launch(*a, version == 1 ? naive_dq : dq, lanes, threads, on);
  if (error != cudaSuccess) return error;
  return launch(*a, version == 1 ? naive_dkdv : dkdv, lanes, threads, on);
}

// What CUDA has to say of an error.
extern "C" const char* error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
