// Registration of the displacement operation with TensorFlow.
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "displacement.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow_parallel.h"

#ifdef KERAS_STSS_CUDA
#include "displacement_cuda.h"
#include "xla/stream_executor/stream.h"
#endif

namespace keras_stss {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

bool DispatchForward(const StssShape& shape, Squeeze squeeze, DType dtype, const void* features, void* output,
                     const Parallel& parallel) {
  KERAS_STSS_DISPATCH(DisplacementForward, shape, squeeze, dtype, features, output, parallel)
}

int64_t DispatchBackwardScratch(const StssShape& shape) { KERAS_STSS_DISPATCH(DisplacementBackwardScratch, shape) }

bool DispatchBackward(const StssShape& shape, Squeeze squeeze, DType dtype, const void* features, const void* gradient,
                      void* features_gradient, float* scratch, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(DisplacementBackward, shape, squeeze, dtype, features, gradient, features_gradient, scratch,
                      parallel)
}

template <typename... Parts>
absl::Status InvalidArgument(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// The attributes of both operations.
struct Settings {
  std::vector<int64_t> offsets, window;
  bool cosine;
  Squeeze squeeze;

  template <typename Context>
  absl::Status Read(Context* context) {
    TF_RETURN_IF_ERROR(context->GetAttr("temporal_offsets", &offsets));
    TF_RETURN_IF_ERROR(context->GetAttr("window", &window));
    TF_RETURN_IF_ERROR(context->GetAttr("cosine", &cosine));
    TF_RETURN_IF_ERROR(context->GetAttr("sigma", &squeeze.sigma));
    TF_RETURN_IF_ERROR(context->GetAttr("temperature", &squeeze.temperature));
    if (offsets.empty()) return InvalidArgument("temporal_offsets must name at least one frame. Received none");
    // A place in the window is held in 32 bits.
    constexpr int64_t kMost = 1 << 15;
    if (window.size() != 2 || window[0] < 1 || window[1] < 1 || window[0] % 2 == 0 || window[1] % 2 == 0 ||
        window[0] >= kMost || window[1] >= kMost)
      return InvalidArgument("window must be two odd positive numbers (U, V) below ", kMost);
    if (!(squeeze.sigma > 0.0f)) return InvalidArgument("sigma must be positive. Received: ", squeeze.sigma);
    if (!(squeeze.temperature > 0.0f) || std::isinf(squeeze.temperature))
      return InvalidArgument("temperature must be positive. Received: ", squeeze.temperature);
    return absl::OkStatus();
  }

  absl::Status Of(const Tensor& features, StssShape* shape) const {
    if (features.dims() != 5)
      return InvalidArgument("features must be (B, T, H, W, C). Received shape ", features.shape().DebugString());
    *shape = {features.dim_size(0), features.dim_size(1), features.dim_size(2), features.dim_size(3),
              features.dim_size(4), offsets.data(),       static_cast<int64_t>(offsets.size()),
              window[0],            window[1],            cosine};
    return absl::OkStatus();
  }
};

// (B, T, H, W, C) -> (B, T, H, W, L, 3).
absl::Status ForwardShape(InferenceContext* context) {
  Settings settings;
  TF_RETURN_IF_ERROR(settings.Read(context));
  ShapeHandle features, leading, output;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 5, &features));
  TF_RETURN_IF_ERROR(context->Subshape(features, 0, 4, &leading));
  const ShapeHandle rest = context->MakeShape({static_cast<int64_t>(settings.offsets.size()), 3});
  TF_RETURN_IF_ERROR(context->Concatenate(leading, rest, &output));
  context->set_output(0, output);
  return absl::OkStatus();
}

absl::Status BackwardShape(InferenceContext* context) {
  Settings settings;
  TF_RETURN_IF_ERROR(settings.Read(context));
  ShapeHandle features, gradient;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 5, &features));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 6, &gradient));
  context->set_output(0, features);
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("KerasStss>Displacement")
    .Input("features: T")
    .Output("displacement: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("temporal_offsets: list(int)")
    .Attr("window: list(int)")
    .Attr("cosine: bool")
    .Attr("sigma: float")
    .Attr("temperature: float")
    .SetShapeFn(ForwardShape);

REGISTER_OP("KerasStss>DisplacementGrad")
    .Input("features: T")
    .Input("gradient: T")
    .Output("features_gradient: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("temporal_offsets: list(int)")
    .Attr("window: list(int)")
    .Attr("cosine: bool")
    .Attr("sigma: float")
    .Attr("temperature: float")
    .SetShapeFn(BackwardShape);

namespace {

template <typename T>
constexpr DType StoredAs() {
  return std::is_same<T, float>::value ? DType::kFloat32
                                       : std::is_same<T, Eigen::half>::value ? DType::kFloat16 : DType::kBFloat16;
}

// What the operation and its gradient, on CPU and GPU, have in common.
class SqueezingKernel : public tensorflow::OpKernel {
 public:
  explicit SqueezingKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.Read(context));
  }

 protected:
  static TensorShape OutputShape(const StssShape& s) {
    return TensorShape({s.batch, s.time, s.height, s.width, s.offset_count, 3});
  }

  static absl::Status CheckGradient(const StssShape& shape, const Tensor& gradient) {
    if (gradient.shape() == OutputShape(shape)) return absl::OkStatus();
    return InvalidArgument("gradient must have shape ", OutputShape(shape).DebugString(),
                           ". Received: ", gradient.shape().DebugString());
  }

  Settings settings_;
};

const char kNoScratch[] = "no memory for the scratch of the displacement operation";

template <typename T>
class DisplacementCpu : public SqueezingKernel {
 public:
  using SqueezingKernel::SqueezingKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& features = context->input(0);
    StssShape shape;
    OP_REQUIRES_OK(context, settings_.Of(features, &shape));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputShape(shape), &output));
    if (output->NumElements() == 0) return;
    const bool done = DispatchForward(shape, settings_.squeeze, StoredAs<T>(), features.data(), output->data(),
                                      OnThreadPool(context));
    OP_REQUIRES(context, done, absl::ResourceExhaustedError(kNoScratch));
  }
};

template <typename T>
class DisplacementGradCpu : public SqueezingKernel {
 public:
  using SqueezingKernel::SqueezingKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& features = context->input(0);
    const Tensor& gradient = context->input(1);
    StssShape shape;
    OP_REQUIRES_OK(context, settings_.Of(features, &shape));
    OP_REQUIRES_OK(context, CheckGradient(shape, gradient));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, features.shape(), &output));
    if (output->NumElements() == 0) return;
    Tensor scratch;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                   TensorShape({DispatchBackwardScratch(shape)}), &scratch));
    const bool done =
        DispatchBackward(shape, settings_.squeeze, StoredAs<T>(), features.data(), gradient.data(), output->data(),
                         static_cast<float*>(scratch.data()), OnThreadPool(context));
    OP_REQUIRES(context, done, absl::ResourceExhaustedError(kNoScratch));
  }
};

#ifdef KERAS_STSS_CUDA

cudaStream_t StreamOf(OpKernelContext* context) {
  return static_cast<cudaStream_t>(context->op_device_context()->stream()->platform_specific_handle().stream);
}

absl::Status Checked(cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("CUDA displacement kernel: ", cudaGetErrorString(error)));
}

template <typename T>
class DisplacementGpu : public SqueezingKernel {
 public:
  using SqueezingKernel::SqueezingKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& features = context->input(0);
    StssShape shape;
    OP_REQUIRES_OK(context, settings_.Of(features, &shape));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputShape(shape), &output));
    if (output->NumElements() == 0) return;
    const int dtype = static_cast<int>(StoredAs<T>());
    const int64_t bytes = DisplacementForwardWorkspace(shape, dtype);
    Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes}), &workspace));
    const Squeeze& squeeze = settings_.squeeze;
    OP_REQUIRES_OK(context,
                   Checked(DisplacementForwardCuda(shape, squeeze.sigma, squeeze.temperature, dtype, features.data(),
                                                   output->data(), workspace.data(), StreamOf(context))));
  }
};

template <typename T>
class DisplacementGradGpu : public SqueezingKernel {
 public:
  using SqueezingKernel::SqueezingKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& features = context->input(0);
    const Tensor& gradient = context->input(1);
    StssShape shape;
    OP_REQUIRES_OK(context, settings_.Of(features, &shape));
    OP_REQUIRES_OK(context, CheckGradient(shape, gradient));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, features.shape(), &output));
    if (output->NumElements() == 0) return;
    const int dtype = static_cast<int>(StoredAs<T>());
    const int64_t bytes = DisplacementBackwardWorkspace(shape, dtype);
    Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes}), &workspace));
    const Squeeze& squeeze = settings_.squeeze;
    OP_REQUIRES_OK(context, Checked(DisplacementBackwardCuda(shape, squeeze.sigma, squeeze.temperature, dtype,
                                                             features.data(), gradient.data(), output->data(),
                                                             workspace.data(), StreamOf(context))));
  }
};

#define KERAS_STSS_REGISTER_GPU(type)                                                                       \
  REGISTER_KERNEL_BUILDER(                                                                                  \
      Name("KerasStss>Displacement").Device(tensorflow::DEVICE_GPU).TypeConstraint<type>("T"),              \
      DisplacementGpu<type>);                                                                               \
  REGISTER_KERNEL_BUILDER(                                                                                  \
      Name("KerasStss>DisplacementGrad").Device(tensorflow::DEVICE_GPU).TypeConstraint<type>("T"),          \
      DisplacementGradGpu<type>);
KERAS_STSS_REGISTER_GPU(float)
KERAS_STSS_REGISTER_GPU(Eigen::half)
KERAS_STSS_REGISTER_GPU(Eigen::bfloat16)

#endif  // KERAS_STSS_CUDA

#define KERAS_STSS_REGISTER_CPU(type)                                                                       \
  REGISTER_KERNEL_BUILDER(                                                                                  \
      Name("KerasStss>Displacement").Device(tensorflow::DEVICE_CPU).TypeConstraint<type>("T"),              \
      DisplacementCpu<type>);                                                                               \
  REGISTER_KERNEL_BUILDER(                                                                                  \
      Name("KerasStss>DisplacementGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<type>("T"),          \
      DisplacementGradCpu<type>);
KERAS_STSS_REGISTER_CPU(float)
KERAS_STSS_REGISTER_CPU(Eigen::half)
KERAS_STSS_REGISTER_CPU(Eigen::bfloat16)

}  // namespace
}  // namespace keras_stss
