// Runs the kernels on rows that end where their memory ends; prints "clean". g++ puts the source
// before this file (-include) and the sanitizers under both.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

static std::mt19937 generator(1);

// `bytes` of memory of its own, `misplaced` bytes after a 16-byte boundary, filled with small bf16s
// (which as pairs are small floats).
struct Memory {
  char* whole;
  char* start;
  Memory(std::size_t bytes, std::size_t misplaced)
      : whole(static_cast<char*>(std::malloc(misplaced + bytes))), start(whole + misplaced) {
    const std::uint16_t small[] = {0x3f80, 0xbf80, 0x4040, 0xc000, 0x3e00};  // 1 -1 3 -2 1/8
    for (std::size_t k = 0; k + 2 <= bytes; k += 2) std::memcpy(start + k, &small[generator() % 5], 2);
  }
  ~Memory() { std::free(whole); }
  Memory(const Memory&) = delete;
};

static bool runs(int version, int threads, int V, int bytes_s, int bytes_t, int misplaced, bool all) {
  const int R = 3;
  Memory x_s(std::size_t(R) * V * bytes_s, misplaced * bytes_s), b_s(std::size_t(V) * bytes_t, 0);
  Memory x_t(std::size_t(R) * V * bytes_t, misplaced * bytes_t), b_t(std::size_t(V) * bytes_s, 0);
  std::vector<std::int64_t> labels = {V - 1, -100, 0};
  std::vector<float> g = {0.5f, 1.0f, -2.0f}, ce(R), kd(R);
  Rows a = {};
  a.x_s = x_s.start;
  a.ce = ce.data();
  a.kd = kd.data();
  a.stride_s = a.stride_t = a.V = V;
  a.R = R;
  a.bytes_s = bytes_s;
  a.bytes_t = bytes_t;
  a.labels = labels.data();
  a.g_ce = g.data();
  a.temperature = 2.0f;
  a.is_kl = 1;
  if (all) {
    a.x_t = x_t.start;
    a.b_s = b_s.start;
    a.b_t = b_t.start;
    a.bytes_b_s = bytes_t;
    a.bytes_b_t = bytes_s;
    a.g_kd = g.data();
  }
  const int error = logit_rows(&a, version, threads, nullptr);
  for (int i = 0; i < R; ++i) {
    if (!std::isfinite(ce[i]) || !std::isfinite(kd[i])) return false;
  }
  return error == cudaSuccess;
}

int main() {
  for (int version : {1, 2})
    for (int V : {1, 7, 8, 33, 509})
      for (int bytes_s : {2, 4})
        for (int bytes_t : {2, 4})
          for (int misplaced : {0, 1, 4})
            for (bool all : {true, false}) {
              if (runs(version, 32, V, bytes_s, bytes_t, misplaced, all)) continue;
              std::fprintf(stderr, "version %d, V %d: wrong\n", version, V);
              return 1;
            }
  if (!runs(2, 64, 600, 2, 4, 1, true)) return 1;
  std::puts("clean");
  return 0;
}
