// TensorFlow's own thread pool as a Parallel.
#ifndef KERAS_STSS_TENSORFLOW_PARALLEL_H_
#define KERAS_STSS_TENSORFLOW_PARALLEL_H_

#include "parallel.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace keras_stss {

// Shards of about equal cost, as many as its estimate is worth.
inline Parallel OnThreadPool(tensorflow::OpKernelContext* context) {
  return {context->device()->tensorflow_cpu_worker_threads()->workers,
          [](void* pool, int64_t units, int64_t cost_per_unit, Parallel::Body body, void* argument) {
            using Scheduling = tensorflow::thread::ThreadPool::SchedulingParams;
            static_cast<tensorflow::thread::ThreadPool*>(pool)->ParallelFor(
                units, Scheduling::Adaptive(cost_per_unit), [=](int64_t begin, int64_t end) { body(argument, begin, end); });
          }};
}

}  // namespace keras_stss

#endif  // KERAS_STSS_TENSORFLOW_PARALLEL_H_
