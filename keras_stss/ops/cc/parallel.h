// Work shared among threads, without a word of TensorFlow: kernels get one of these and do not care who runs them.
#ifndef KERAS_STSS_PARALLEL_H_
#define KERAS_STSS_PARALLEL_H_

#include <cstdint>

namespace keras_stss {

// Calls body(argument, begin, end) over ranges that cover [0, units) once each, possibly at the same time. How the
// units are cut into ranges is not fixed: a result must not depend on it.
struct Parallel {
  using Body = void (*)(void* argument, int64_t begin, int64_t end);

  void* context;
  void (*run)(void* context, int64_t units, int64_t cost_per_unit, Body body, void* argument);

  // function(begin, end); cost_per_unit in cycles, roughly.
  template <typename Function>
  void operator()(int64_t units, int64_t cost_per_unit, const Function& function) const {
    struct Call {
      static void Body(void* argument, int64_t begin, int64_t end) {
        (*static_cast<const Function*>(argument))(begin, end);
      }
    };
    if (units > 0) run(context, units, cost_per_unit, &Call::Body, const_cast<Function*>(&function));
  }
};

// One thread, in order.
inline const Parallel& Serial() {
  static const Parallel serial{nullptr, [](void*, int64_t units, int64_t, Parallel::Body body, void* argument) {
                                 body(argument, 0, units);
                               }};
  return serial;
}

}  // namespace keras_stss

#endif  // KERAS_STSS_PARALLEL_H_
