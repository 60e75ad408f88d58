// Rows of logits: the cross-entropy, the distance from the teacher, and the gradient of both.
//
//   nvcc -O3 -std=c++17 -ftz=true -Xptxas=-v -Xcompiler=-fPIC -shared
//        -gencode=arch=compute_90a,code=sm_90a -o logit_rows.so logit_rows.cu
//
// A block of threads takes one row: V student logits x_s and, where there is a teacher, V teacher
// logits x_t, each with its bias b. With s = x_s + b_s, t = x_t + b_t and p = softmax(z / T):
//
//   (1)  ce = -ln p_s[label]  at T = 1            0 without labels
//   (2)  kd = T^2 sum p_t ln(p_t / p_s)           kl_ts; 0 without a teacher
//        kd = -T^2 sum p_t ln p_s                 soft_ce
//   (3)  x_s becomes g_ce (p_s at T = 1, minus 1 at the label) + g_kd T (p_s - p_t)
//
// g_ce and g_kd are what the gradients of the row's ce and kd are multiplied with: T^2 of (2) times
// the 1/T inside the softmax leaves T. Without them x_s stays as it is. Label -100: the row counts
// nothing, and its gradient is zero. Any other label outside the vocabulary gives NaN. 0 ln 0 is 0:
// a logit of -inf takes its word out of the distribution, the teacher's or both.
//
// Logits are bfloat16 or float; what is computed with them is float, and rounded once, at the end.
// Results do not depend on the order in which threads run: no atomics. Versions, simplest first:
//
//   naive_rows   three passes over the row in memory, one logit at a time
//   fast_rows    one pass; the row waits in shared memory for its gradient
//
// kernels/README.md explains both. Called from kernels/cuda_rows.py; tests/kernels/emulator runs
// this very file on a CPU.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

constexpr int64_t IGNORED = -100;
constexpr float LOG2E = 1.44269504f;
constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;

// The arguments, in the order of kernels/cuda_rows.py. Null: not there. `bytes_` is the width of
// one element, 4 for float and 2 for bfloat16; strides are in elements, from row to row.
struct Rows {
  void* x_s;              // (R, V), overwritten by its gradient where g_ce or g_kd is there
  const void* x_t;        // (R, V) or null
  const void* b_s;        // (V) or null
  const void* b_t;        // (V) or null
  const int64_t* labels;  // (R) or null
  const float* g_ce;      // (R) or null
  const float* g_kd;      // (R) or null
  float* ce;              // (R)
  float* kd;              // (R)
  int64_t stride_s, stride_t, R, V;
  int32_t bytes_s, bytes_t, bytes_b_s, bytes_b_t;
  float temperature;
  int32_t is_kl;  // else soft_ce
};

// ---- what both versions share ------------------------------------------------------------------

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float* to) { *to = x; }
__device__ inline void narrow(float x, bf16* to) { *to = __float2bfloat16(x); }

__device__ inline float bias_at(const void* b, int bytes, int j) {
  if (b == nullptr) return 0.0f;
  return bytes == 4 ? static_cast<const float*>(b)[j] : wide(static_cast<const bf16*>(b)[j]);
}

// One row: the same in all threads of its block.
template <typename S, typename T>
struct Row {
  S* x_s;
  const T* x_t;  // null: no teacher
  int y;         // label; -1: none
  float s_y;     // its logit
  bool is_ignored, has_gradient;
  float g_ce, g_kd;
};

template <typename S, typename T>
__device__ Row<S, T> row_of(const Rows& a, int64_t i) {  // 64 bits: R * V may pass 2^31
  Row<S, T> row = {};
  row.x_s = static_cast<S*>(a.x_s) + i * a.stride_s;
  if (a.x_t != nullptr) row.x_t = static_cast<const T*>(a.x_t) + i * a.stride_t;
  row.has_gradient = a.g_ce != nullptr || a.g_kd != nullptr;
  row.g_ce = a.g_ce != nullptr ? a.g_ce[i] : 0.0f;
  row.g_kd = a.g_kd != nullptr ? a.g_kd[i] : 0.0f;
  row.y = -1;
  if (a.labels == nullptr) return row;
  const int64_t label = a.labels[i];
  row.is_ignored = label == IGNORED;
  if (0 <= label && label < a.V) {
    row.y = static_cast<int>(label);
    row.s_y = wide(row.x_s[row.y]) + bias_at(a.b_s, a.bytes_b_s, row.y);
  } else {
    row.s_y = row.g_ce = NAN;  // seen at once, where reading outside the row would not be
  }
  return row;
}

// Sums over a row, relative to a pivot each for student and teacher, so that no power overflows.
struct Sums {
  float m_s, m_t;  // pivots: the largest logits
  float l_1;       // sum of e^(s - m_s)
  float l_s, l_t;  // sums of e^((s - m_s) / T) and e^((t - m_t) / T)
  float d;         // sum of e^((t - m_t) / T) ([kl] (t - m_t) - (s - m_s))
};

// (1) and (2). ln p_s[y] = s_y - m_s - ln l_1, and likewise for every word of p_t and p_s at T.
__device__ inline void write_losses(const Rows& a, int64_t i, float s_y, const Sums& r) {
  const float T = a.temperature;
  const float ln_l_t = a.is_kl ? logf(r.l_t) : 0.0f;
  a.ce[i] = a.labels != nullptr ? logf(r.l_1) - (s_y - r.m_s) : 0.0f;
  a.kd[i] = a.x_t != nullptr ? T * (r.d / r.l_t) + T * T * (logf(r.l_s) - ln_l_t) : 0.0f;
}

// Shared memory: each block's own, as much as the launch asks for.
extern __shared__ __align__(16) unsigned char shared[];

// ---- version 1: naive --------------------------------------------------------------------------

struct Max {
  static constexpr float NEUTRAL = -INFINITY;
  __device__ float operator()(float x, float y) const { return fmaxf(x, y); }
};
struct Sum {
  static constexpr float NEUTRAL = 0.0f;
  __device__ float operator()(float x, float y) const { return x + y; }
};

// One value a thread -> their maximum or sum, in every thread. Halves the values until one is left.
template <typename Op>
__device__ float over_tree(float value, Op op) {
  float* values = reinterpret_cast<float*>(shared);
  const int me = threadIdx.x;
  __syncthreads();  // all have read what the call before left
  values[me] = value;
  __syncthreads();  // all values are there
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (me < half) values[me] = op(values[me], values[me + half]);
    __syncthreads();  // this half is done
  }
  return values[0];
}

template <typename S, typename T>
__global__ void __launch_bounds__(MAX_THREADS, 1) naive_rows(Rows a) {
  const int64_t i = blockIdx.x;
  const int V = static_cast<int>(a.V), first = threadIdx.x, step = blockDim.x;
  const Row<S, T> row = row_of<S, T>(a, i);
  const auto s = [&](int j) { return wide(row.x_s[j]) + bias_at(a.b_s, a.bytes_b_s, j); };
  const auto t = [&](int j) { return wide(row.x_t[j]) + bias_at(a.b_t, a.bytes_b_t, j); };
  if (row.is_ignored) {
    if (threadIdx.x == 0) a.ce[i] = a.kd[i] = 0.0f;
    for (int j = first; j < V && row.has_gradient; j += step) narrow(0.0f, &row.x_s[j]);
    return;
  }

  Sums r = {-INFINITY, -INFINITY, 0.0f, 0.0f, 0.0f, 0.0f};
  for (int j = first; j < V; j += step) {
    r.m_s = fmaxf(r.m_s, s(j));
    if (row.x_t) r.m_t = fmaxf(r.m_t, t(j));
  }
  r.m_s = over_tree(r.m_s, Max());
  r.m_t = over_tree(r.m_t, Max());

  for (int j = first; j < V; j += step) {
    const float z_s = s(j) - r.m_s;
    r.l_1 += expf(z_s);
    r.l_s += expf(z_s / a.temperature);
    if (!row.x_t) continue;
    const float z_t = t(j) - r.m_t, e_t = expf(z_t / a.temperature);
    r.l_t += e_t;
    if (e_t > 0.0f) r.d += e_t * ((a.is_kl ? z_t : 0.0f) - z_s);
  }
  r.l_1 = over_tree(r.l_1, Sum());
  r.l_s = over_tree(r.l_s, Sum());
  r.l_t = over_tree(r.l_t, Sum());
  r.d = over_tree(r.d, Sum());
  if (threadIdx.x == 0) write_losses(a, i, row.s_y, r);

  if (!row.has_gradient) return;
  for (int j = first; j < V; j += step) {  // (3)
    const float z_s = s(j) - r.m_s;
    float g = row.g_ce * (expf(z_s) / r.l_1 - (j == row.y ? 1.0f : 0.0f));
    if (row.x_t) {
      const float p_s = expf(z_s / a.temperature) / r.l_s;
      const float p_t = expf((t(j) - r.m_t) / a.temperature) / r.l_t;
      g += row.g_kd * a.temperature * (p_s - p_t);
    }
    narrow(g, &row.x_s[j]);
  }
}

// ---- version 2: fast ---------------------------------------------------------------------------
//
// A thread takes eight neighbouring logits at a time: 16 bytes of bfloat16, the widest load there
// is, or twice that of float. Rows need not begin where such a load may: the row is cut so that the
// student's eights do, and an eight that hangs over an end, or that lies across in the teacher's
// row or in a bias, is read one by one. A stride that is a multiple of 8 leaves almost none.

constexpr int N = 8;
constexpr float LOWEST = -1e30f;  // pivot before any logit: finite, since -inf - (-inf) is NaN

template <typename X>
struct __align__(16) Eight {
  X x[N];
};

// Elements by which `row` begins after a 16-byte boundary.
template <typename X>
__host__ __device__ inline int phase_of(const X* row) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(X));
}

template <typename X>
__device__ inline bool is_whole(const X* row, int j, int V) {
  return j >= 0 && j + N <= V && phase_of(row + j) == 0;
}

// Elements j .. j+7 of a row; -inf outside of it: no maximum, and nothing to add to a sum.
template <typename X>
__device__ inline Eight<X> take(const X* row, int j, int V) {
  if (is_whole(row, j, V)) return *reinterpret_cast<const Eight<X>*>(row + j);
  Eight<X> v;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (0 <= j + i && j + i < V) {
      v.x[i] = row[j + i];
    } else {
      narrow(-INFINITY, &v.x[i]);
    }
  }
  return v;
}

template <typename X>
__device__ inline void put(const Eight<X>& v, X* row, int j, int V) {
  if (is_whole(row, j, V)) {
    *reinterpret_cast<Eight<X>*>(row + j) = v;
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (0 <= j + i && j + i < V) row[j + i] = v.x[i];
  }
}

template <typename X>
__device__ inline void add(const Eight<X>& v, float* z) {
#pragma unroll
  for (int i = 0; i < N; ++i) z[i] += wide(v.x[i]);
}

// Logits j .. j+7 of a row -> with their bias.
template <typename X>
__device__ inline void with_bias(const Eight<X>& v, const void* b, int bytes, int j, int V,
                                 float* z) {
#pragma unroll
  for (int i = 0; i < N; ++i) z[i] = wide(v.x[i]);
  if (b == nullptr) return;
  if (bytes == 4) {
    add(take(static_cast<const float*>(b), j, V), z);
  } else {
    add(take(static_cast<const bf16*>(b), j, V), z);
  }
}

__device__ inline float largest(const float* z) {
  float m = z[0];
#pragma unroll
  for (int i = 1; i < N; ++i) m = fmaxf(m, z[i]);
  return m;
}

// The temperature, and how e^z follows from e^(z/T): for T = 1, 2, 3, 4 as a power, which costs a
// product or three where an exponential takes as long as eight; the error of e^(z/T), 2 units in
// the last place, grows T-fold. For other T it is computed again.
struct Heat {
  float c;    // e^(z/T) = 2^(c z)
  int power;  // T, or 0: no power
  float kl;   // 1 for kl_ts, 0 for soft_ce

  __device__ explicit Heat(const Rows& a) {
    // without a teacher there is one temperature, 1; without labels nothing is wanted at 1
    const float T = a.x_t != nullptr ? a.temperature : 1.0f;
    c = LOG2E / T;
    const bool is_whole = T == 1.0f || T == 2.0f || T == 3.0f || T == 4.0f;
    power = a.labels == nullptr ? 1 : is_whole ? static_cast<int>(T) : 0;
    kl = a.is_kl ? 1.0f : 0.0f;
  }
  __device__ float at_T(float z) const { return exp2f(c * z); }
  __device__ float at_1(float z, float e) const {
    if (power == 0) return exp2f(LOG2E * z);
    float product = e;
    for (int k = 1; k < power; ++k) product *= e;
    return product;
  }
  __device__ void at_1(const float* z, const float* e, float* e_1) const {  // eight: one branch
#pragma unroll
    for (int q = 0; q < N; ++q) e_1[q] = power == 0 ? exp2f(LOG2E * z[q]) : e[q];
    for (int k = 1; k < power; ++k) {
#pragma unroll
      for (int q = 0; q < N; ++q) e_1[q] *= e[q];
    }
  }
};

// Moves the pivots up to m_s and m_t; every sum shrinks accordingly.
__device__ inline void move_student(Sums& r, float m_s, const Heat& heat) {
  const float z = r.m_s - m_s, e = heat.at_T(z);
  r.l_1 *= heat.at_1(z, e);
  r.l_s *= e;
  r.d -= r.l_t * z;
  r.m_s = m_s;
}
__device__ inline void move_teacher(Sums& r, float m_t, const Heat& heat) {
  const float z = r.m_t - m_t, e = heat.at_T(z);
  // nothing left: d may hold an infinity of words that no longer count
  r.d = e > 0.0f ? e * (r.d + heat.kl * r.l_t * z) : 0.0f;
  r.l_t *= e;
  r.m_t = m_t;
}

// One value of each kind a thread -> their maximum or sum, in every thread: first within each warp,
// by shuffles, then over the results of the (at most 32) warps, which meet in `slots`.
template <typename Op>
__device__ inline float over_warp(float value, Op op) {
#pragma unroll
  for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  return value;
}
template <int COUNT, typename Op>
__device__ inline void over_block(float* (&values)[COUNT], float* slots, Op op) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    const float of_warp = over_warp(*values[k], op);
    if (lane == 0) slots[k * WARP + warp] = of_warp;
  }
  __syncthreads();  // the results of all warps are there
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    const float of_warp = lane < warps ? slots[k * WARP + lane] : Op::NEUTRAL;
    *values[k] = over_warp(of_warp, op);
  }
}

constexpr int SLOTS = (2 + 4) * WARP;  // of two maxima and four sums: apart, so that none waits

template <typename S, typename T>
__global__ void __launch_bounds__(MAX_THREADS, 1) fast_rows(Rows a, bool keep_s, bool keep_t) {
  const int64_t i = blockIdx.x;
  const int V = static_cast<int>(a.V);
  const Row<S, T> row = row_of<S, T>(a, i);
  const int phase = phase_of(row.x_s), n = (phase + V + N - 1) / N;  // eights
  if (row.is_ignored) {
    if (threadIdx.x == 0) a.ce[i] = a.kd[i] = 0.0f;
    Eight<S> zero;
    for (int k = 0; k < N; ++k) narrow(0.0f, &zero.x[k]);
    for (int k = threadIdx.x; k < n && row.has_gradient; k += blockDim.x) {
      put(zero, row.x_s, k * N - phase, V);
    }
    return;
  }

  float* slots = reinterpret_cast<float*>(shared);
  Eight<S>* kept_s = reinterpret_cast<Eight<S>*>(slots + SLOTS);
  Eight<T>* kept_t = reinterpret_cast<Eight<T>*>(kept_s + (V + 2 * N - 2) / N);
  const Heat heat(a);

  // One pass: each thread's own pivots and sums. A larger logit moves the pivot.
  Sums r = {LOWEST, LOWEST, 0.0f, 0.0f, 0.0f, 0.0f};
  for (int k = threadIdx.x; k < n; k += blockDim.x) {
    const int j = k * N - phase;
    const Eight<S> x_s = take(row.x_s, j, V);
    Eight<T> x_t;
    if (row.x_t) x_t = take(row.x_t, j, V);  // both on their way before either is waited for
    if (keep_s) kept_s[k] = x_s;
    if (keep_t) kept_t[k] = x_t;

    float s[N], e_s[N], e_1[N];
    with_bias(x_s, a.b_s, a.bytes_b_s, j, V, s);
    const float top_s = largest(s);
    if (top_s > r.m_s) move_student(r, top_s, heat);
#pragma unroll
    for (int q = 0; q < N; ++q) r.l_s += e_s[q] = heat.at_T(s[q] -= r.m_s);
    heat.at_1(s, e_s, e_1);
#pragma unroll
    for (int q = 0; q < N; ++q) r.l_1 += e_1[q];

    if (!row.x_t) continue;
    float t[N];
    with_bias(x_t, a.b_t, a.bytes_b_t, j, V, t);
    const float top_t = largest(t);
    if (top_t > r.m_t) move_teacher(r, top_t, heat);
#pragma unroll
    for (int q = 0; q < N; ++q) {
      const float z = t[q] - r.m_t, e_t = heat.at_T(z);
      r.l_t += e_t;
      if (e_t > 0.0f) r.d += e_t * (heat.kl * z - s[q]);
    }
  }

  // The row's pivots; the sums of every thread relative to them; the row's sums.
  float m_s = r.m_s, m_t = r.m_t;
  float* maxima[] = {&m_s, &m_t};
  float* sums[] = {&r.l_1, &r.l_s, &r.l_t, &r.d};
  over_block(maxima, slots, Max());
  move_student(r, m_s, heat);
  move_teacher(r, m_t, heat);
  over_block(sums, slots + 2 * WARP, Sum());
  if (threadIdx.x == 0) write_losses(a, i, row.s_y, r);

  // (3), each thread where it has read: what waits in shared memory is its own.
  if (!row.has_gradient) return;
  const float a_1 = row.g_ce / r.l_1, a_s = row.g_kd * a.temperature / r.l_s;
  const float a_t = row.g_kd * a.temperature / r.l_t;
  for (int k = threadIdx.x; k < n; k += blockDim.x) {
    const int j = k * N - phase;
    float s[N], e_s[N], g[N];
    with_bias(keep_s ? kept_s[k] : take(row.x_s, j, V), a.b_s, a.bytes_b_s, j, V, s);
#pragma unroll
    for (int q = 0; q < N; ++q) e_s[q] = heat.at_T(s[q] -= m_s);
    heat.at_1(s, e_s, g);
#pragma unroll
    for (int q = 0; q < N; ++q) g[q] = a_1 * g[q] - (j + q == row.y ? row.g_ce : 0.0f);
    if (row.x_t) {
      float t[N];
      with_bias(keep_t ? kept_t[k] : take(row.x_t, j, V), a.b_t, a.bytes_b_t, j, V, t);
#pragma unroll
      for (int q = 0; q < N; ++q) g[q] += a_s * e_s[q] - a_t * heat.at_T(t[q] - m_t);
    }
    Eight<S> out;
#pragma unroll
    for (int q = 0; q < N; ++q) narrow(g[q], &out.x[q]);
    put(out, row.x_s, j, V);
  }
}

// ---- the launch --------------------------------------------------------------------------------

// What a fast block keeps in shared memory: the student's row, then the teacher's, as far as they
// fit. What does not is read again, from the L2 cache: of two rows of 30,522 floats the teacher's.
template <typename S, typename T>
static cudaError_t launch(const Rows& a, int version, int threads, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(a.R));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = threads * sizeof(float);
  config.stream = stream;
  if (version == 1) return cudaLaunchKernelEx(&config, naive_rows<S, T>, a);

  int device = 0, most = 0;  // bytes
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const int64_t n = (a.V + 2 * N - 2) / N;  // eights, wherever the row begins
  const int64_t bytes_s = n * sizeof(Eight<S>), bytes_t = n * sizeof(Eight<T>);
  const bool has_gradient = a.g_ce != nullptr || a.g_kd != nullptr;
  int64_t bytes = SLOTS * sizeof(float);
  const bool keep_s = has_gradient && bytes + bytes_s <= most;
  bytes += keep_s ? bytes_s : 0;
  const bool keep_t = keep_s && a.x_t != nullptr && bytes + bytes_t <= most;
  bytes += keep_t ? bytes_t : 0;
  // beyond 48 KB a kernel has to be told that it may
  error = cudaFuncSetAttribute(fast_rows<S, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  config.dynamicSmemBytes = bytes;
  return cudaLaunchKernelEx(&config, fast_rows<S, T>, a, keep_s, keep_t);
}

// Version 1 or 2 on the current device, with 32 to 1024 threads a block, a power of 2.
// Returns a cudaError_t; the results are there when `stream` has come this far.
extern "C" int logit_rows(const Rows* a, int version, int threads, void* stream) {
  const bool is_power = threads >= WARP && threads <= MAX_THREADS && !(threads & (threads - 1));
  if (version < 1 || version > 2 || !is_power || a->V < 1) return cudaErrorInvalidValue;
  if (a->R == 0) return cudaSuccess;  // no block: nothing that could be launched
  const auto on = static_cast<cudaStream_t>(stream);
  if (a->bytes_s == 4 && a->bytes_t == 4) return launch<float, float>(*a, version, threads, on);
  if (a->bytes_s == 4) return launch<float, bf16>(*a, version, threads, on);
  if (a->bytes_t == 4) return launch<bf16, float>(*a, version, threads, on);
  return launch<bf16, bf16>(*a, version, threads, on);
}

// What CUDA has to say of an error.
extern "C" const char* error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
