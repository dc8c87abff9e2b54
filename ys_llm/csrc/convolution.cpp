// A causal depthwise convolution of a few taps, added to its input: one pass over memory each way.
//
// Rows of x are tokens: that of token t in row b of the batch is t * stride_t + b * stride_b, so
// that both memory orders are read as they lie. Sums are in float, or in double where the numbers
// are double.

#include "common.h"

namespace ys {
namespace {

// Where the tokens are. `reach` (or null: all) is how many earlier ones each of them sees.
struct Tokens {
  int64_t batch, length, width, earlier;
  int64_t stride_t, stride_b;
  const int32_t* reach;

  Tokens(int64_t batch, int64_t length, int64_t width, int64_t earlier, bool time_major,
         const int32_t* reach)
      : batch(batch),
        length(length),
        width(width),
        earlier(earlier),
        stride_t(time_major ? batch : 1),
        stride_b(time_major ? 1 : length),
        reach(reach) {}

  int64_t at(int64_t t, int64_t b) const { return (t * stride_t + b * stride_b) * width; }
  bool sees(int64_t t, int64_t b, int64_t j) const { return !reach || j <= reach[b * length + t]; }
};

// Calls body(thread, t, b) for every token, in memory order on each thread.
template <class Body>
void for_tokens(const Tokens& tokens, int64_t threads, Body body) {
  int64_t rows = tokens.batch * tokens.length;
  threads = std::max<int64_t>(1, std::min(threads, rows / 16));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int64_t thread = omp_get_thread_num();
    Range mine = share(rows, 1, omp_get_num_threads(), thread);
    for (int64_t row = mine.begin; row < mine.end; row++) {
      bool time_major = tokens.stride_b == 1;
      int64_t inner = time_major ? tokens.batch : tokens.length;
      int64_t major = row / inner, minor = row % inner;
      if (time_major) body(thread, major, minor);
      else body(thread, minor, major);
    }
  }
}

// total += weight_j x_{t-j}, of `past` where t - j is before the first token.
template <class T, class R>
void forward(const T* x, const R* weight, const R* past, T* y, const Tokens& tokens,
             int64_t threads) {
  constexpr int n = Lanes<R>::n;
  const int64_t width = tokens.width, earlier = tokens.earlier;
  for_tokens(tokens, threads, [&](int64_t, int64_t t, int64_t b) {
    const int64_t at = tokens.at(t, b);
    for (int64_t i = 0; i < width; i += n) {
      const int64_t left = width - i;
      Vec<R> total = load_part<R>(x + at + i, left);
      for (int64_t j = 1; j <= earlier && tokens.sees(t, b, j); j++) {
        Vec<R> w = load_part<R>(weight + (earlier - j) * width + i, left);
        Vec<R> v = t >= j ? load_part<R>(x + tokens.at(t - j, b) + i, left)
                          : load_part<R>(past + (b * earlier + earlier + t - j) * width + i, left);
        total += w * v;
      }
      store_part<R>(y + at + i, total, left);
    }
  });
}

// d_weight_j of one token on one thread.
template <class T, class R>
void add_to_weight(const T* d_y, const T* x, const R* past, R* sums, const Tokens& tokens,
                   int64_t t, int64_t b) {
  constexpr int n = Lanes<R>::n;
  const int64_t width = tokens.width, earlier = tokens.earlier, at = tokens.at(t, b);
  for (int64_t j = 1; j <= earlier && tokens.sees(t, b, j); j++) {
    R* sum = sums + (earlier - j) * width;
    for (int64_t i = 0; i < width; i += n) {
      const int64_t left = width - i;
      Vec<R> v = t >= j ? load_part<R>(x + tokens.at(t - j, b) + i, left)
                        : load_part<R>(past + (b * earlier + earlier + t - j) * width + i, left);
      store_part<R>(sum + i, load_part<R>(sum + i, left) + load_part<R>(d_y + at + i, left) * v,
                    left);
    }
  }
}

// out += w_j dy_{s+j} over the tokens s + j that see s; s < 0 counts back from the first token.
template <class T, class R>
Vec<R> read_later(Vec<R> total, const T* d_y, const R* weight, const Tokens& tokens, int64_t s,
                  int64_t b, int64_t i) {
  const int64_t width = tokens.width, earlier = tokens.earlier;
  for (int64_t j = std::max<int64_t>(1, -s); j <= earlier && s + j < tokens.length; j++) {
    if (!tokens.sees(s + j, b, j)) break;
    total += load_part<R>(weight + (earlier - j) * width + i, width - i) *
             load_part<R>(d_y + tokens.at(s + j, b) + i, width - i);
  }
  return total;
}

template <class T, class R>
void backward(const T* d_y, const T* x, const R* weight, const R* past, T* d_x, R* d_weight,
              R* d_past, const Tokens& tokens, int64_t threads) {
  constexpr int n = Lanes<R>::n;
  const int64_t width = tokens.width, earlier = tokens.earlier, size = earlier * width;
  std::vector<R> sums(threads * size, R(0));
  for_tokens(tokens, threads, [&](int64_t thread, int64_t t, int64_t b) {
    const int64_t at = tokens.at(t, b);
    for (int64_t i = 0; i < width; i += n) {
      Vec<R> total = load_part<R>(d_y + at + i, width - i);
      total = read_later<T, R>(total, d_y, weight, tokens, t, b, i);
      store_part<R>(d_x + at + i, total, width - i);
    }
    add_to_weight(d_y, x, past, sums.data() + thread * size, tokens, t, b);
  });
  for (int64_t b = 0; b < tokens.batch; b++)
    for (int64_t k = 0; k < earlier; k++)
      for (int64_t i = 0; i < width; i += n)
        store_part<R>(d_past + (b * earlier + k) * width + i,
                      read_later<T, R>(Vec<R>{}, d_y, weight, tokens, k - earlier, b, i),
                      width - i);
  for (int64_t i = 0; i < size; i++) {
    R total = 0;
    for (int64_t thread = 0; thread < threads; thread++) total += sums[thread * size + i];
    d_weight[i] = total;
  }
}

}  // namespace
}  // namespace ys

using ys::bf16;

#define CONVOLUTION(suffix, T, R)                                                                 \
  void ys_convolution_forward_##suffix(                                                           \
      const T* x, const R* weight, const R* past, const int32_t* reach, T* y, int64_t batch,      \
      int64_t length, int64_t width, int64_t earlier, int64_t time_major, int64_t threads) {      \
    ys::Tokens tokens(batch, length, width, earlier, time_major, reach);                          \
    ys::forward(x, weight, past, y, tokens, threads);                                             \
  }                                                                                               \
  void ys_convolution_backward_##suffix(const T* d_y, const T* x, const R* weight, const R* past, \
                                        const int32_t* reach, T* d_x, R* d_weight, R* d_past,     \
                                        int64_t batch, int64_t length, int64_t width,             \
                                        int64_t earlier, int64_t time_major, int64_t threads) {   \
    ys::Tokens tokens(batch, length, width, earlier, time_major, reach);                          \
    ys::backward(d_y, x, weight, past, d_x, d_weight, d_past, tokens, threads);                   \
  }

extern "C" {
CONVOLUTION(d, double, double)
CONVOLUTION(f, float, float)
CONVOLUTION(b, bf16, float)
}
