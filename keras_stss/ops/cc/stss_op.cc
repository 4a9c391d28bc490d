// The spatio-temporal self-similarity as TensorFlow operations: KerasStss>Stss and its gradient.
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "stss.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/overflow.h"
#include "tensorflow_parallel.h"

#ifdef KERAS_STSS_CUDA
#include "stss_cuda.h"
#include "xla/stream_executor/stream.h"
#endif

namespace keras_stss {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

template <typename... Parts>
absl::Status InvalidArgument(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// The attributes of both operations.
struct Settings {
  std::vector<int64_t> offsets, window;
  bool cosine;

  template <typename Context>
  absl::Status Read(Context* context) {
    TF_RETURN_IF_ERROR(context->GetAttr("temporal_offsets", &offsets));
    TF_RETURN_IF_ERROR(context->GetAttr("window", &window));
    TF_RETURN_IF_ERROR(context->GetAttr("cosine", &cosine));
    if (offsets.empty()) return InvalidArgument("temporal_offsets must name at least one frame. Received none");
    constexpr int64_t kMost = int64_t{1} << 31;
    if (window.size() != 2 || window[0] < 1 || window[1] < 1 || window[0] % 2 == 0 || window[1] % 2 == 0 ||
        window[0] >= kMost || window[1] >= kMost) {
      std::string received;
      for (int64_t side : window) received += (received.empty() ? "" : ", ") + std::to_string(side);
      return InvalidArgument("window must be two odd positive numbers (U, V). Received: (", received, ")");
    }
    return absl::OkStatus();
  }

  StssShape Of(const TensorShape& features) const {
    return {features.dim_size(0), features.dim_size(1), features.dim_size(2), features.dim_size(3),
            features.dim_size(4), offsets.data(),       static_cast<int64_t>(offsets.size()),
            window[0],            window[1],            cosine};
  }

  absl::Status Volume(const TensorShape& features, TensorShape* volume) const {
    if (features.dims() != 5)
      return InvalidArgument("features must be (B, T, H, W, C). Received shape ", features.DebugString());
    *volume = TensorShape();
    for (int axis = 0; axis < 4; ++axis) volume->AddDim(features.dim_size(axis));
    for (int64_t size : {static_cast<int64_t>(offsets.size()), window[0], window[1]}) {
      if (tensorflow::MultiplyWithoutOverflow(volume->num_elements(), size) < 0 ||
          tensorflow::MultiplyWithoutOverflow(volume->num_elements(), size) > int64_t{1} << 59)
        return InvalidArgument("the self-similarity of features ", features.DebugString(), " with ", offsets.size(),
                               " offsets and a window of ", window[0], " x ", window[1], " is too large");
      volume->AddDim(size);
    }
    return absl::OkStatus();
  }
};

absl::Status ForwardShape(InferenceContext* context) {
  Settings settings;
  TF_RETURN_IF_ERROR(settings.Read(context));
  ShapeHandle features, lead, volume;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 5, &features));
  TF_RETURN_IF_ERROR(context->Subshape(features, 0, 4, &lead));
  const ShapeHandle own = context->MakeShape({context->MakeDim(static_cast<int64_t>(settings.offsets.size())),
                                              context->MakeDim(settings.window[0]),
                                              context->MakeDim(settings.window[1])});
  TF_RETURN_IF_ERROR(context->Concatenate(lead, own, &volume));
  context->set_output(0, volume);
  return absl::OkStatus();
}

absl::Status BackwardShape(InferenceContext* context) {
  Settings settings;
  TF_RETURN_IF_ERROR(settings.Read(context));
  ShapeHandle features, gradient;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 5, &features));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 7, &gradient));
  DimensionHandle merged;
  for (int axis = 0; axis < 4; ++axis) {
    TF_RETURN_IF_ERROR(context->Merge(context->Dim(features, axis), context->Dim(gradient, axis), &merged));
    TF_RETURN_IF_ERROR(context->ReplaceDim(features, axis, merged, &features));
  }
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(gradient, 4), settings.offsets.size(), &merged));
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(gradient, 5), settings.window[0], &merged));
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(gradient, 6), settings.window[1], &merged));
  context->set_output(0, features);
  return absl::OkStatus();
}

REGISTER_OP("KerasStss>Stss")
    .Input("features: T")
    .Output("volume: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("temporal_offsets: list(int)")
    .Attr("window: list(int)")
    .Attr("cosine: bool")
    .SetShapeFn(ForwardShape);

REGISTER_OP("KerasStss>StssGrad")
    .Input("features: T")
    .Input("gradient: T")
    .Output("features_gradient: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("temporal_offsets: list(int)")
    .Attr("window: list(int)")
    .Attr("cosine: bool")
    .SetShapeFn(BackwardShape);

template <typename T>
constexpr DType DTypeOf() {
  return std::is_same_v<T, float>         ? DType::kFloat32
         : std::is_same_v<T, Eigen::half> ? DType::kFloat16
                                          : DType::kBFloat16;
}

bool Forward(const StssShape& shape, DType dtype, const void* features, void* volume, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(StssForward, shape, dtype, features, volume, parallel)
}

bool Backward(const StssShape& shape, DType dtype, const void* features, const void* gradient, void* result,
              const Parallel& parallel) {
  KERAS_STSS_DISPATCH(StssBackward, shape, dtype, features, gradient, result, parallel)
}

absl::Status NoScratch() {
  return absl::ResourceExhaustedError("no memory for the self-similarity's scratch");
}

template <typename T>
struct OnCpu {
  static absl::Status Run(OpKernelContext* context, const StssShape& shape, const Tensor& features, Tensor* volume) {
    const bool done = Forward(shape, DTypeOf<T>(), features.data(), volume->data(), OnThreadPool(context));
    return done ? absl::OkStatus() : NoScratch();
  }

  static absl::Status Run(OpKernelContext* context, const StssShape& shape, const Tensor& features,
                          const Tensor& gradient, Tensor* result) {
    const bool done =
        Backward(shape, DTypeOf<T>(), features.data(), gradient.data(), result->data(), OnThreadPool(context));
    return done ? absl::OkStatus() : NoScratch();
  }
};

#ifdef KERAS_STSS_CUDA
template <typename T>
struct OnGpu {
  static constexpr int kDType = static_cast<int>(DTypeOf<T>());
  static constexpr int64_t kMostOffsets = 64;  // see stss_cuda.h

  static cudaStream_t StreamOf(OpKernelContext* context) {
    return static_cast<cudaStream_t>(context->op_device_context()->stream()->platform_specific_handle().stream);
  }

  static absl::Status Allocate(OpKernelContext* context, size_t bytes, Tensor* workspace) {
    return context->allocate_temp(tensorflow::DT_UINT8, TensorShape({static_cast<int64_t>(bytes)}), workspace);
  }

  static absl::Status Check(const StssShape& shape) {
    if (shape.offset_count <= kMostOffsets) return absl::OkStatus();
    return InvalidArgument("the CUDA kernels take at most ", kMostOffsets, " temporal_offsets. Received: ",
                           shape.offset_count);
  }

  static absl::Status StatusOf(cudaError_t error) {
    if (error == cudaSuccess) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("CUDA could not run the self-similarity: ", cudaGetErrorString(error)));
  }

  static absl::Status Run(OpKernelContext* context, const StssShape& shape, const Tensor& features, Tensor* volume) {
    Tensor workspace;
    TF_RETURN_IF_ERROR(Check(shape));
    TF_RETURN_IF_ERROR(Allocate(context, StssForwardWorkspace(shape, kDType), &workspace));
    return StatusOf(StssForwardCuda(shape, kDType, features.data(), volume->data(), workspace.data(),
                                    StreamOf(context)));
  }

  static absl::Status Run(OpKernelContext* context, const StssShape& shape, const Tensor& features,
                          const Tensor& gradient, Tensor* result) {
    Tensor workspace;
    TF_RETURN_IF_ERROR(Check(shape));
    TF_RETURN_IF_ERROR(Allocate(context, StssBackwardWorkspace(shape, kDType), &workspace));
    return StatusOf(StssBackwardCuda(shape, kDType, features.data(), gradient.data(), result->data(),
                                     workspace.data(), StreamOf(context)));
  }
};
#endif  // KERAS_STSS_CUDA

template <typename Kernels>
class StssOp : public tensorflow::OpKernel {
 public:
  explicit StssOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.Read(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& features = context->input(0);
    TensorShape shape;
    OP_REQUIRES_OK(context, settings_.Volume(features.shape(), &shape));
    Tensor* volume = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &volume));
    if (volume->NumElements() == 0) return;
    OP_REQUIRES_OK(context, Kernels::Run(context, settings_.Of(features.shape()), features, volume));
  }

 private:
  Settings settings_;
};

template <typename Kernels>
class StssGradOp : public tensorflow::OpKernel {
 public:
  explicit StssGradOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.Read(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &features = context->input(0), &gradient = context->input(1);
    TensorShape shape;
    OP_REQUIRES_OK(context, settings_.Volume(features.shape(), &shape));
    OP_REQUIRES(context, gradient.shape() == shape,
                InvalidArgument("the gradient must have the volume's shape ", shape.DebugString(), ". Received ",
                                gradient.shape().DebugString()));
    Tensor* result = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, features.shape(), &result));
    if (result->NumElements() == 0) return;
    OP_REQUIRES_OK(context, Kernels::Run(context, settings_.Of(features.shape()), features, gradient, result));
  }

 private:
  Settings settings_;
};

#define KERAS_STSS_REGISTER(device, Kernels, type)                                             \
  REGISTER_KERNEL_BUILDER(Name("KerasStss>Stss").Device(device).TypeConstraint<type>("T"),     \
                          StssOp<Kernels<type>>);                                              \
  REGISTER_KERNEL_BUILDER(Name("KerasStss>StssGrad").Device(device).TypeConstraint<type>("T"), \
                          StssGradOp<Kernels<type>>);

KERAS_STSS_REGISTER(tensorflow::DEVICE_CPU, OnCpu, float)
KERAS_STSS_REGISTER(tensorflow::DEVICE_CPU, OnCpu, Eigen::half)
KERAS_STSS_REGISTER(tensorflow::DEVICE_CPU, OnCpu, Eigen::bfloat16)
#ifdef KERAS_STSS_CUDA
KERAS_STSS_REGISTER(tensorflow::DEVICE_GPU, OnGpu, float)
KERAS_STSS_REGISTER(tensorflow::DEVICE_GPU, OnGpu, Eigen::half)
KERAS_STSS_REGISTER(tensorflow::DEVICE_GPU, OnGpu, Eigen::bfloat16)
#endif

}  // namespace
}  // namespace keras_stss
