// Which of the compiled instruction sets runs.
#ifndef KERAS_STSS_DISPATCH_H_
#define KERAS_STSS_DISPATCH_H_

#include <cstdlib>
#include <cstring>

namespace keras_stss {

enum class Isa { kPlain, kAvx2, kAvx512 };

// The best that the processor has; KERAS_STSS_ISA=plain, avx2 or avx512 asks for no more than that.
inline Isa BestIsa() {
  static const Isa best = [] {
#if defined(__x86_64__)
    const char* asked = std::getenv("KERAS_STSS_ISA");
    const bool plain = asked && !std::strcmp(asked, "plain"), no_512 = asked && !std::strcmp(asked, "avx2");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && !plain && !no_512) return Isa::kAvx512;
    if (avx2 && !plain) return Isa::kAvx2;
#endif
    return Isa::kPlain;
  }();
  return best;
}

}  // namespace keras_stss

// Calls function(arguments) of the best instruction set's namespace.
#if defined(__x86_64__)
#define KERAS_STSS_DISPATCH(function, ...)                                              \
  switch (::keras_stss::BestIsa()) {                                                    \
    case ::keras_stss::Isa::kAvx512: return ::keras_stss::avx512::function(__VA_ARGS__); \
    case ::keras_stss::Isa::kAvx2: return ::keras_stss::avx2::function(__VA_ARGS__);     \
    default: return ::keras_stss::plain::function(__VA_ARGS__);                         \
  }
// Declares a function once for each instruction set.
#define KERAS_STSS_FOR_EACH_ISA(declaration) \
  namespace plain { declaration; }           \
  namespace avx2 { declaration; }            \
  namespace avx512 { declaration; }
#else
#define KERAS_STSS_DISPATCH(function, ...) return ::keras_stss::plain::function(__VA_ARGS__)
#define KERAS_STSS_FOR_EACH_ISA(declaration) \
  namespace plain { declaration; }
#endif

#endif  // KERAS_STSS_DISPATCH_H_
