// CUDA on a CPU, as much of it as this library's kernels need, so that g++ compiles them unchanged:
//
//   g++ -std=c++17 -O1 -x c++ -I tests/kernels/emulator -shared -fPIC -o rows.so logit_rows.cu
//
// This header and cuda_bf16.h take the place of CUDA's own. Blocks run one after another. The
// threads of a block are fibers of one CPU thread: each has a stack, and runs until it comes to a
// barrier or a shuffle. Then the next one of its warp runs; a warp runs as far ahead of the others
// as it can, until all its threads wait at a barrier of the block. That is what finds a missing
// barrier: in lock-step, every thread would have written before another reads. Warps and the
// threads in them take turns in order, or, after emulator_order(seed), in a random one.
//
// Shared memory is filled with 0x7f (3.4e38 as a float) before each block, and with the address
// sanitizer what a launch has not asked for is poisoned. A block in which nobody can go on, as when
// a barrier is passed by some of its threads, ends the launch with cudaErrorLaunchFailure.
//
// Not seen here: the weaker memory order of a GPU, registers, speed, the hardware's exponential.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(place, bytes) ((void)(place), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(place, bytes) ((void)(place), (void)(bytes))
#endif

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = void*;

namespace emulator {

constexpr int WARP = 32, MAX_THREADS = 1024;
constexpr int MAX_SHARED = 227 * 1024, DEFAULT_SHARED = 48 * 1024;  // bytes a block, on sm_90
constexpr std::size_t STACK = 256 * 1024;  // touched only as far as a fiber goes

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = DONE;
};

inline Fiber fibers[MAX_THREADS], scheduler;
inline std::uint64_t posted[2][MAX_THREADS];  // values at a shuffle: this one's, the one before
inline unsigned n_shuffles[MAX_THREADS];
inline int running = -1;
inline std::function<void()> body;
inline unsigned seed = 0;
inline int shared_limit = MAX_SHARED;
inline cudaError_t last_error = cudaSuccess;

// Goes on with fiber `to`. The sanitizer has to know whose stack it is looking at.
inline void go(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  void* kept = nullptr;
  const bool is_over = from.state == DONE && &from != &scheduler;
  const auto& stack = to.context.uc_stack;
  __sanitizer_start_switch_fiber(is_over ? nullptr : &kept, stack.ss_sp, stack.ss_size);
  swapcontext(&from.context, &to.context);
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(kept, &bottom, &size);
  if (&from == &scheduler) return;
  scheduler.context.uc_stack.ss_sp = const_cast<void*>(bottom);
  scheduler.context.uc_stack.ss_size = size;
#else
  swapcontext(&from.context, &to.context);
#endif
}

inline void wait(State state) {
  fibers[running].state = state;
  go(fibers[running], scheduler);
}

inline void enter() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  scheduler.context.uc_stack.ss_sp = const_cast<void*>(bottom);
  scheduler.context.uc_stack.ss_size = size;
#endif
  body();
  wait(DONE);
}

inline void start(int thread) {
  Fiber& fiber = fibers[thread];
  if (!fiber.stack) fiber.stack.reset(new char[STACK]);
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), STACK);  // what the fiber before left behind
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
  fiber.state = READY;
  n_shuffles[thread] = 0;
}

inline void resume(int thread) {
  running = thread;
  threadIdx = dim3(thread);
  go(scheduler, fibers[thread]);
}

// Whether all of these threads that are still there wait for the same thing.
inline bool all_at(State state, int begin, int end) {
  bool is_any = false;
  for (int k = begin; k < end; ++k) {
    if (fibers[k].state != state && fibers[k].state != DONE) return false;
    is_any |= fibers[k].state == state;
  }
  return is_any;
}

inline void release(State state, int begin, int end) {
  for (int k = begin; k < end; ++k) {
    if (fibers[k].state == state) fibers[k].state = READY;
  }
}

// Runs a warp until none of its threads can go on; false: none could.
inline bool run_warp(int begin, int end, const std::vector<int>& order) {
  bool has_run = false;
  for (bool is_moving = true; is_moving;) {
    is_moving = false;
    for (int k : order) {
      if (begin + k >= end || fibers[begin + k].state != READY) continue;
      resume(begin + k);
      is_moving = has_run = true;
    }
    if (all_at(AT_SHUFFLE, begin, end)) {
      release(AT_SHUFFLE, begin, end);
      is_moving = true;
    }
  }
  return has_run;
}

inline std::vector<int> turns(int n, std::mt19937& random) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (seed != 0) std::shuffle(order.begin(), order.end(), random);
  return order;
}

// One block, from its first instruction to its last; false: nobody can go on.
inline bool run_block(int threads, std::mt19937& random) {
  for (int k = 0; k < threads; ++k) start(k);
  const int warps = (threads + WARP - 1) / WARP;
  for (;;) {
    bool has_run = false;
    for (int w : turns(warps, random)) {
      const int begin = w * WARP, end = std::min(begin + WARP, threads);
      has_run |= run_warp(begin, end, turns(WARP, random));
    }
    if (all_at(AT_BARRIER, 0, threads)) {
      release(AT_BARRIER, 0, threads);
      continue;
    }
    if (!has_run) return all_at(DONE, 0, threads);
  }
}

}  // namespace emulator

// ---- what a kernel calls -----------------------------------------------------------------------

alignas(16) unsigned char shared[emulator::MAX_SHARED];

inline void __syncthreads() { emulator::wait(emulator::AT_BARRIER); }

// All threads of the warp post a value; then each reads that of another, `from` of the warp's 32. A
// thread can be one shuffle ahead of another, not two: two places each are enough.
namespace emulator {
template <typename X>
X shuffle(X value, int from) {
  static_assert(sizeof value <= sizeof posted[0][0], "a shuffle takes 32 or 64 bits");
  const int me = running;
  auto& place = posted[n_shuffles[me]++ % 2];
  std::memcpy(&place[me], &value, sizeof value);
  wait(AT_SHUFFLE);
  X other;
  std::memcpy(&other, &place[me / WARP * WARP + from], sizeof other);
  return other;
}
}  // namespace emulator

template <typename X>
X __shfl_xor_sync(unsigned, X value, int lanes) {
  return emulator::shuffle(value, (emulator::running ^ lanes) % emulator::WARP);
}

template <typename X>
X __shfl_sync(unsigned, X value, int lane) {
  return emulator::shuffle(value, lane);
}

// ---- what a launcher calls ---------------------------------------------------------------------

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "invalid argument";
  if (error == cudaErrorInvalidConfiguration) return "invalid configuration argument";
  if (error == cudaErrorLaunchFailure) return "some threads wait where others never come";
  return "no error";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulator::shared_limit;
  return cudaSuccess;
}

namespace emulator {
inline std::map<const void*, std::size_t> allowed;  // bytes of shared memory, kernel by kernel

template <typename Kernel>
std::size_t allowed_to(Kernel* kernel) {
  const auto found = allowed.find(reinterpret_cast<const void*>(kernel));
  return found == allowed.end() ? DEFAULT_SHARED : found->second;
}
}  // namespace emulator

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulator::shared_limit) return cudaErrorInvalidValue;
  const int least = std::max(bytes, emulator::DEFAULT_SHARED);
  emulator::allowed[reinterpret_cast<const void*>(kernel)] = least;
  return cudaSuccess;
}

template <typename... Takes, typename... Gives>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Takes...),
                               Gives&&... arguments) {
  const dim3 blocks = config->gridDim, threads = config->blockDim;
  const std::size_t bytes = config->dynamicSmemBytes;
  const bool is_flat = blocks.y * blocks.z * threads.y * threads.z == 1;  // all we emulate
  if (!is_flat || blocks.x == 0 || threads.x == 0 || threads.x > emulator::MAX_THREADS) {
    return cudaErrorInvalidConfiguration;
  }
  if (bytes > emulator::allowed_to(kernel)) return cudaErrorInvalidValue;
  gridDim = blocks;
  blockDim = threads;
  emulator::body = [&] { kernel(static_cast<Takes>(arguments)...); };
  std::mt19937 random(emulator::seed);
  cudaError_t error = cudaSuccess;
  for (unsigned k = 0; k < blocks.x && error == cudaSuccess; ++k) {
    blockIdx = dim3(k);
    ASAN_UNPOISON_MEMORY_REGION(shared, sizeof shared);
    std::memset(shared, 0x7f, sizeof shared);
    ASAN_POISON_MEMORY_REGION(shared + bytes, sizeof shared - bytes);
    if (!emulator::run_block(threads.x, random)) error = cudaErrorLaunchFailure;
  }
  emulator::body = nullptr;
  return error;
}

// ---- what a test calls -------------------------------------------------------------------------

extern "C" void emulator_order(unsigned seed) { emulator::seed = seed; }  // 0: in order
extern "C" void emulator_shared_limit(int bytes) { emulator::shared_limit = bytes; }
