// TensorFlow's side of the convolutions over tiny maps (map_conv.h): registration, shapes, checks.
//
// MapConvStack is the whole of it for inference. For training, MapPack brings maps into the packed form, MapConv is one
// convolution with the statistics that batch normalisation wants, and MapFinish brings the last one's result back.
#include <vector>

#include "map_conv.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow_parallel.h"

namespace keras_stss {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

namespace {

using tensorflow::DataType;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::errors::ResourceExhausted;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;
using Status = absl::Status;

#define KERAS_STSS_TYPES "T: {float, half, bfloat16}"

DType StoredAs(DataType type) {
  return type == tensorflow::DT_FLOAT ? DType::kFloat32
         : type == tensorflow::DT_HALF ? DType::kFloat16
                                       : DType::kBFloat16;
}

const float* Floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data()); }
float* Floats(Tensor* tensor) { return static_cast<float*>(tensor->data()); }
int64_t Blocks(int64_t maps) { return (maps + kMapLanes - 1) / kMapLanes; }

// Whatever runs out of memory in a kernel.
Status NoMemory(bool done) {
  return done ? absl::OkStatus() : ResourceExhausted("map_conv: there is no memory for what lies between its steps");
}

// ---------------------------------------------------------------------------------------------------------------------
// Geometry
// ---------------------------------------------------------------------------------------------------------------------

Status CheckPairs(const std::vector<int64_t>& pairs, const char* name, int64_t layers, int64_t least) {
  bool good = static_cast<int64_t>(pairs.size()) == 2 * layers;
  for (int64_t value : pairs) good = good && value >= least;
  if (good) return absl::OkStatus();
  return InvalidArgument("map_conv: ", name, " must be two numbers a convolution, each at least ", least, ", for ", layers,
                         " of them. Received: ", pairs.size(), " numbers (", absl::StrJoin(pairs, ", "), ")");
}

// What a kernel makes of maps (rows, columns, channels).
Status MakeLayer(int64_t rows, int64_t columns, int64_t channels, const TensorShape& kernel, const int64_t* strides,
                 const int64_t* paddings, MapConvLayer* layer) {
  if (kernel.dims() != 4 || kernel.dim_size(2) != channels || kernel.num_elements() == 0) {
    return InvalidArgument("map_conv: the kernel must be (height, width, ", channels, ", filters), none of them 0. ",
                           "Received: shape=", kernel.DebugString());
  }
  *layer = {rows,       columns,    channels,    kernel.dim_size(0), kernel.dim_size(1), kernel.dim_size(3),
            strides[0], strides[1], paddings[0], paddings[1],        0,                  0};
  const int64_t spare_rows = rows + 2 * paddings[0] - layer->kernel_rows;
  const int64_t spare_columns = columns + 2 * paddings[1] - layer->kernel_columns;
  if (rows < 1 || columns < 1 || spare_rows < 0 || spare_columns < 0) {
    return InvalidArgument("map_conv: the kernel ", kernel.DebugString(), " with padding ", paddings[0], ", ",
                           paddings[1], " does not fit maps of ", rows, "×", columns);
  }
  layer->out_rows = spare_rows / strides[0] + 1;
  layer->out_columns = spare_columns / strides[1] + 1;
  return absl::OkStatus();
}

Status CheckVector(const Tensor& tensor, const char* name, int64_t size) {
  if (tensor.dims() == 1 && tensor.dim_size(0) == size) return absl::OkStatus();
  return InvalidArgument("map_conv: ", name, " must have shape (", size,
                         "). Received: shape=", tensor.shape().DebugString());
}

// (blocks, rows, columns, channels, kMapLanes)
Status CheckPacked(const Tensor& tensor, const char* name, int64_t maps) {
  const auto& shape = tensor.shape();
  if (maps >= 0 && shape.dims() == 5 && shape.dim_size(4) == kMapLanes && shape.dim_size(0) == Blocks(maps)) {
    return absl::OkStatus();
  }
  return InvalidArgument("map_conv: ", name, " must be ", maps, " packed maps: (", Blocks(maps),
                         ", rows, columns, channels, ", kMapLanes, "). Received: shape=", shape.DebugString());
}

Status CheckSame(const Tensor& tensor, const char* name, const TensorShape& shape) {
  if (tensor.shape() == shape) return absl::OkStatus();
  return InvalidArgument("map_conv: ", name, " must have shape ", shape.DebugString(),
                         ". Received: shape=", tensor.shape().DebugString());
}

TensorShape PackedShape(int64_t maps, int64_t rows, int64_t columns, int64_t channels) {
  return TensorShape({Blocks(maps), rows, columns, channels, kMapLanes});
}

// Stored maps (…, rows, columns, channels).
struct Stored {
  int64_t maps, rows, columns, channels;
  int64_t cells() const { return rows * columns * channels; }
};

Status MakeStored(const TensorShape& shape, Stored* stored) {
  const int rank = shape.dims();
  if (rank < 3) {
    return InvalidArgument("map_conv: maps must have shape (…, rows, columns, channels). Received: shape=",
                           shape.DebugString());
  }
  *stored = {1, shape.dim_size(rank - 3), shape.dim_size(rank - 2), shape.dim_size(rank - 1)};
  for (int axis = 0; axis < rank - 3; ++axis) stored->maps *= shape.dim_size(axis);
  if (stored->cells() == 0) {
    return InvalidArgument("map_conv: maps must not be empty. Received: shape=", shape.DebugString());
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------------------------------
// Shape inference
// ---------------------------------------------------------------------------------------------------------------------

// (size + 2 padding - kernel) / stride + 1, where the sizes are known.
Status OutSize(InferenceContext* c, DimensionHandle size, DimensionHandle kernel, int64_t stride, int64_t padding,
               DimensionHandle* out) {
  if (stride < 1 || padding < 0) return InvalidArgument("map_conv: strides must be positive and paddings not negative");
  *out = c->UnknownDim();
  if (!c->ValueKnown(size) || !c->ValueKnown(kernel)) return absl::OkStatus();
  const int64_t spare = c->Value(size) + 2 * padding - c->Value(kernel);
  if (spare < 0) {
    return InvalidArgument("map_conv: a kernel of ", c->Value(kernel), " with padding ", padding, " does not fit maps of ",
                           c->Value(size));
  }
  *out = c->MakeDim(spare / stride + 1);
  return absl::OkStatus();
}

Status PackedRank(InferenceContext* c, int input, ShapeHandle* shape) {
  TF_RETURN_IF_ERROR(c->WithRank(c->input(input), 5, shape));
  DimensionHandle lanes;
  return c->WithValue(c->Dim(*shape, 4), kMapLanes, &lanes);
}

Status StackShape(InferenceContext* c) {
  std::vector<int64_t> strides, paddings;
  int count;
  TF_RETURN_IF_ERROR(c->GetAttr("strides", &strides));
  TF_RETURN_IF_ERROR(c->GetAttr("paddings", &paddings));
  TF_RETURN_IF_ERROR(c->GetAttr("N", &count));
  TF_RETURN_IF_ERROR(CheckPairs(strides, "strides", count, 1));
  TF_RETURN_IF_ERROR(CheckPairs(paddings, "paddings", count, 0));
  ShapeHandle maps, leading, result;
  if (!c->RankKnown(c->input(0))) {
    c->set_output(0, c->UnknownShape());
    return absl::OkStatus();
  }
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 3, &maps));
  DimensionHandle rows = c->Dim(maps, -3), columns = c->Dim(maps, -2), channels = c->Dim(maps, -1);
  for (int i = 0; i < count; ++i) {
    ShapeHandle kernel;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(1 + i), 4, &kernel));
    TF_RETURN_IF_ERROR(c->Merge(channels, c->Dim(kernel, 2), &channels));
    TF_RETURN_IF_ERROR(OutSize(c, rows, c->Dim(kernel, 0), strides[2 * i], paddings[2 * i], &rows));
    TF_RETURN_IF_ERROR(OutSize(c, columns, c->Dim(kernel, 1), strides[2 * i + 1], paddings[2 * i + 1], &columns));
    channels = c->Dim(kernel, 3);
  }
  TF_RETURN_IF_ERROR(c->Subshape(maps, 0, -3, &leading));
  TF_RETURN_IF_ERROR(c->Concatenate(leading, c->MakeShape({rows, columns, channels}), &result));
  c->set_output(0, result);
  return absl::OkStatus();
}

Status PackShape(InferenceContext* c) {
  if (!c->RankKnown(c->input(0))) {
    c->set_output(0, c->MakeShape({c->UnknownDim(), c->UnknownDim(), c->UnknownDim(), c->UnknownDim(),
                                   c->MakeDim(kMapLanes)}));
    return absl::OkStatus();
  }
  ShapeHandle maps;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 3, &maps));
  int64_t count = 1;
  for (int axis = 0; axis < c->Rank(maps) - 3 && count >= 0; ++axis) {
    const auto size = c->Dim(maps, axis);
    count = c->ValueKnown(size) ? count * c->Value(size) : -1;
  }
  const DimensionHandle blocks = count < 0 ? c->UnknownDim() : c->MakeDim(Blocks(count));
  c->set_output(0, c->MakeShape({blocks, c->Dim(maps, -3), c->Dim(maps, -2), c->Dim(maps, -1), c->MakeDim(kMapLanes)}));
  return absl::OkStatus();
}

// A result whose shape is the value of the last input.
Status AskedShape(InferenceContext* c) {
  ShapeHandle packed, asked;
  TF_RETURN_IF_ERROR(PackedRank(c, 0, &packed));
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(c->num_inputs() - 1, &asked));
  c->set_output(0, asked);
  return absl::OkStatus();
}

Status ConvShape(InferenceContext* c) {
  std::vector<int64_t> strides, paddings;
  TF_RETURN_IF_ERROR(c->GetAttr("strides", &strides));
  TF_RETURN_IF_ERROR(c->GetAttr("paddings", &paddings));
  TF_RETURN_IF_ERROR(CheckPairs(strides, "strides", 1, 1));
  TF_RETURN_IF_ERROR(CheckPairs(paddings, "paddings", 1, 0));
  ShapeHandle x, kernel, scalar;
  DimensionHandle rows, columns, channels;
  TF_RETURN_IF_ERROR(PackedRank(c, 0, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 4, &kernel));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 0, &scalar));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 3), c->Dim(kernel, 2), &channels));
  TF_RETURN_IF_ERROR(OutSize(c, c->Dim(x, 1), c->Dim(kernel, 0), strides[0], paddings[0], &rows));
  TF_RETURN_IF_ERROR(OutSize(c, c->Dim(x, 2), c->Dim(kernel, 1), strides[1], paddings[1], &columns));
  const DimensionHandle filters = c->Dim(kernel, 3);
  c->set_output(0, c->MakeShape({c->Dim(x, 0), rows, columns, filters, c->MakeDim(kMapLanes)}));
  c->set_output(1, c->Vector(filters));
  c->set_output(2, c->Vector(filters));
  return absl::OkStatus();
}

// Outputs that are like the inputs in the same place.
Status GradShape(InferenceContext* c) {
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, c->input(i));
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

bool RunStack(const MapConvLayer* layers, int64_t count, int64_t maps, DType dtype, const void* input,
              const float* const* kernels, const float* const* shifts, void* output, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapConvStack, layers, count, maps, dtype, input, kernels, shifts, output, parallel);
}

bool RunPack(const Stored& stored, DType dtype, const void* input, float* packed, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapPack, stored.maps, stored.cells(), dtype, input, packed, parallel);
}

bool RunUnpack(const Stored& stored, const float* packed, DType dtype, void* output, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapUnpack, stored.maps, stored.cells(), packed, dtype, output, parallel);
}

bool RunConv(const MapConvLayer& layer, int64_t maps, const float* x, MapActivation activation, const float* kernel,
             float* y, float* mean, float* variance, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapConv, layer, maps, x, activation, kernel, y, mean, variance, parallel);
}

bool RunConvGrad(const MapConvLayer& layer, int64_t maps, const float* x, MapActivation activation,
                 const float* kernel, const float* y, const float* d_y, MapStatisticsGradient statistics, float* d_x,
                 float* d_scale, float* d_shift, float* d_kernel, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapConvGrad, layer, maps, x, activation, kernel, y, d_y, statistics, d_x, d_scale, d_shift,
                      d_kernel, parallel);
}

bool RunFinish(const Stored& stored, const float* y, MapActivation activation, DType dtype, void* output,
               const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapFinish, stored.maps, stored.rows * stored.columns, stored.channels, y, activation, dtype,
                      output, parallel);
}

bool RunFinishGrad(const Stored& stored, const float* y, MapActivation activation, DType dtype, const void* gradient,
                   float* d_y, float* d_scale, float* d_shift, const Parallel& parallel) {
  KERAS_STSS_DISPATCH(MapFinishGrad, stored.maps, stored.rows * stored.columns, stored.channels, y, activation, dtype,
                      gradient, d_y, d_scale, d_shift, parallel);
}

class MapConvStackOp : public OpKernel {
 public:
  explicit MapConvStackOp(OpKernelConstruction* construction) : OpKernel(construction) {
    int count;
    OP_REQUIRES_OK(construction, construction->GetAttr("N", &count));
    OP_REQUIRES_OK(construction, construction->GetAttr("strides", &strides_));
    OP_REQUIRES_OK(construction, construction->GetAttr("paddings", &paddings_));
    OP_REQUIRES_OK(construction, CheckPairs(strides_, "strides", count, 1));
    OP_REQUIRES_OK(construction, CheckPairs(paddings_, "paddings", count, 0));
    OP_REQUIRES(construction, count <= kMostMapLayers,
                InvalidArgument("map_conv: a stack has at most ", kMostMapLayers, " convolutions. Received: ", count));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    OpInputList kernels, shifts;
    OP_REQUIRES_OK(context, context->input_list("kernels", &kernels));
    OP_REQUIRES_OK(context, context->input_list("shifts", &shifts));
    Stored stored;
    OP_REQUIRES_OK(context, MakeStored(input.shape(), &stored));
    MapConvLayer layers[kMostMapLayers];
    const float *weights[kMostMapLayers], *offsets[kMostMapLayers];
    int64_t rows = stored.rows, columns = stored.columns, channels = stored.channels;
    for (int i = 0; i < kernels.size(); ++i) {
      OP_REQUIRES_OK(context, MakeLayer(rows, columns, channels, kernels[i].shape(), &strides_[2 * i],
                                        &paddings_[2 * i], &layers[i]));
      OP_REQUIRES_OK(context, CheckVector(shifts[i], "a shift", layers[i].filters));
      weights[i] = Floats(kernels[i]);
      offsets[i] = Floats(shifts[i]);
      rows = layers[i].out_rows, columns = layers[i].out_columns, channels = layers[i].filters;
    }
    TensorShape shape = input.shape();
    shape.set_dim(shape.dims() - 3, rows);
    shape.set_dim(shape.dims() - 2, columns);
    shape.set_dim(shape.dims() - 1, channels);
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    OP_REQUIRES_OK(context, NoMemory(RunStack(layers, kernels.size(), stored.maps, StoredAs(input.dtype()),
                                              input.data(), weights, offsets, output->data(),
                                              OnThreadPool(context))));
  }

 private:
  std::vector<int64_t> strides_, paddings_;
};

class MapPackOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    Stored stored;
    OP_REQUIRES_OK(context, MakeStored(input.shape(), &stored));
    Tensor* packed;
    const auto shape = PackedShape(stored.maps, stored.rows, stored.columns, stored.channels);
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &packed));
    OP_REQUIRES_OK(context, NoMemory(RunPack(stored, StoredAs(input.dtype()), input.data(), Floats(packed),
                                             OnThreadPool(context))));
  }
};

// Allocates a result of the shape that the input `which` asks for, which must be that of the packed maps' content.
Status AllocateAsked(OpKernelContext* context, int which, const Tensor& packed, Stored* stored, Tensor** output) {
  const Tensor& asked = context->input(which);
  if (asked.dims() != 1) {
    return InvalidArgument("map_conv: shape must be a vector. Received: shape=", asked.shape().DebugString());
  }
  TensorShape shape;
  TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape(asked.flat<int64_t>(), &shape));
  TF_RETURN_IF_ERROR(MakeStored(shape, stored));
  TF_RETURN_IF_ERROR(CheckPacked(packed, "packed", stored->maps));
  TF_RETURN_IF_ERROR(
      CheckSame(packed, "packed", PackedShape(stored->maps, stored->rows, stored->columns, stored->channels)));
  return context->allocate_output(0, shape, output);
}

class MapUnpackOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& packed = context->input(0);
    Stored stored;
    Tensor* output;
    OP_REQUIRES_OK(context, AllocateAsked(context, 1, packed, &stored, &output));
    OP_REQUIRES_OK(context, NoMemory(RunUnpack(stored, Floats(packed), StoredAs(output->dtype()), output->data(),
                                               OnThreadPool(context))));
  }
};

// What MapConv and its gradient have in common: inputs x, scale, shift, kernel, maps.
class ConvKernel : public OpKernel {
 public:
  explicit ConvKernel(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("strides", &strides_));
    OP_REQUIRES_OK(construction, construction->GetAttr("paddings", &paddings_));
    OP_REQUIRES_OK(construction, construction->GetAttr("activate", &activate_));
    OP_REQUIRES_OK(construction, construction->GetAttr("statistics", &statistics_));
    OP_REQUIRES_OK(construction, CheckPairs(strides_, "strides", 1, 1));
    OP_REQUIRES_OK(construction, CheckPairs(paddings_, "paddings", 1, 0));
  }

 protected:
  Status Read(OpKernelContext* context, int64_t* maps, MapConvLayer* layer, MapActivation* activation) const {
    const Tensor &x = context->input(0), &count = context->input(4);
    if (!tensorflow::TensorShapeUtils::IsScalar(count.shape())) {
      return InvalidArgument("map_conv: maps must be a scalar. Received: shape=", count.shape().DebugString());
    }
    *maps = count.scalar<int64_t>()();
    TF_RETURN_IF_ERROR(CheckPacked(x, "x", *maps));
    const int64_t channels = x.dim_size(3);
    TF_RETURN_IF_ERROR(MakeLayer(x.dim_size(1), x.dim_size(2), channels, context->input(3).shape(), strides_.data(),
                                 paddings_.data(), layer));
    *activation = {nullptr, nullptr};
    if (!activate_) return absl::OkStatus();
    TF_RETURN_IF_ERROR(CheckVector(context->input(1), "scale", channels));
    TF_RETURN_IF_ERROR(CheckVector(context->input(2), "shift", channels));
    *activation = {Floats(context->input(1)), Floats(context->input(2))};
    return absl::OkStatus();
  }

  std::vector<int64_t> strides_, paddings_;
  bool activate_, statistics_;
};

class MapConvOp : public ConvKernel {
 public:
  using ConvKernel::ConvKernel;

  void Compute(OpKernelContext* context) override {
    int64_t maps;
    MapConvLayer layer;
    MapActivation activation;
    OP_REQUIRES_OK(context, Read(context, &maps, &layer, &activation));
    Tensor *y, *mean, *variance;
    const auto shape = PackedShape(maps, layer.out_rows, layer.out_columns, layer.filters);
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &y));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({layer.filters}), &mean));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({layer.filters}), &variance));
    if (!statistics_) {
      mean->flat<float>().setZero();
      variance->flat<float>().setZero();
    }
    OP_REQUIRES_OK(context,
                   NoMemory(RunConv(layer, maps, Floats(context->input(0)), activation, Floats(context->input(3)),
                                    Floats(y), statistics_ ? Floats(mean) : nullptr, Floats(variance),
                                    OnThreadPool(context))));
  }
};

class MapConvGradOp : public ConvKernel {
 public:
  using ConvKernel::ConvKernel;

  void Compute(OpKernelContext* context) override {
    int64_t maps;
    MapConvLayer layer;
    MapActivation activation;
    OP_REQUIRES_OK(context, Read(context, &maps, &layer, &activation));
    const auto shape = PackedShape(maps, layer.out_rows, layer.out_columns, layer.filters);
    const Tensor &y = context->input(5), &d_y = context->input(7);
    OP_REQUIRES_OK(context, CheckSame(y, "y", shape));
    OP_REQUIRES_OK(context, CheckSame(d_y, "the gradient of y", shape));
    for (int input : {6, 8, 9})
      OP_REQUIRES_OK(context, CheckVector(context->input(input), "the statistics", layer.filters));
    Tensor* outputs[4];
    for (int i = 0; i < 4; ++i)
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(i).shape(), &outputs[i]));
    if (!activate_) {
      outputs[1]->flat<float>().setZero();
      outputs[2]->flat<float>().setZero();
    }
    MapStatisticsGradient statistics = {nullptr, nullptr, nullptr};
    if (statistics_) statistics = {Floats(context->input(6)), Floats(context->input(8)), Floats(context->input(9))};
    OP_REQUIRES_OK(context,
                   NoMemory(RunConvGrad(layer, maps, Floats(context->input(0)), activation, Floats(context->input(3)),
                                        Floats(y), Floats(d_y), statistics, Floats(outputs[0]), Floats(outputs[1]),
                                        Floats(outputs[2]), Floats(outputs[3]), OnThreadPool(context))));
  }
};

// scale and shift are inputs 1 and 2.
Status ReadActivation(OpKernelContext* context, int64_t channels, MapActivation* activation) {
  TF_RETURN_IF_ERROR(CheckVector(context->input(1), "scale", channels));
  TF_RETURN_IF_ERROR(CheckVector(context->input(2), "shift", channels));
  *activation = {Floats(context->input(1)), Floats(context->input(2))};
  return absl::OkStatus();
}

class MapFinishOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& y = context->input(0);
    Stored stored;
    Tensor* output;
    MapActivation activation;
    OP_REQUIRES_OK(context, AllocateAsked(context, 3, y, &stored, &output));
    OP_REQUIRES_OK(context, ReadActivation(context, stored.channels, &activation));
    OP_REQUIRES_OK(context, NoMemory(RunFinish(stored, Floats(y), activation, StoredAs(output->dtype()),
                                               output->data(), OnThreadPool(context))));
  }
};

class MapFinishGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &y = context->input(0), &gradient = context->input(3);
    Stored stored;
    MapActivation activation;
    OP_REQUIRES_OK(context, MakeStored(gradient.shape(), &stored));
    OP_REQUIRES_OK(context,
                   CheckSame(y, "y", PackedShape(stored.maps, stored.rows, stored.columns, stored.channels)));
    OP_REQUIRES_OK(context, ReadActivation(context, stored.channels, &activation));
    Tensor* outputs[3];
    for (int i = 0; i < 3; ++i)
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(i).shape(), &outputs[i]));
    OP_REQUIRES_OK(context,
                   NoMemory(RunFinishGrad(stored, Floats(y), activation, StoredAs(gradient.dtype()), gradient.data(),
                                          Floats(outputs[0]), Floats(outputs[1]), Floats(outputs[2]),
                                          OnThreadPool(context))));
  }
};

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Registration
// ---------------------------------------------------------------------------------------------------------------------

REGISTER_OP("KerasStss>MapConvStack")
    .Input("maps: T")
    .Input("kernels: N * float")
    .Input("shifts: N * float")
    .Output("output: T")
    .Attr(KERAS_STSS_TYPES)
    .Attr("N: int >= 1")
    .Attr("strides: list(int)")
    .Attr("paddings: list(int)")
    .SetShapeFn(StackShape)
    .Doc("Maps (…, rows, columns, channels) through N convolutions, each with a shift per filter and ReLU.");

REGISTER_OP("KerasStss>MapPack")
    .Input("maps: T")
    .Output("packed: float")
    .Attr(KERAS_STSS_TYPES)
    .SetShapeFn(PackShape)
    .Doc("Maps (…, rows, columns, channels) in the packed form (blocks, rows, columns, channels, 48).");

REGISTER_OP("KerasStss>MapUnpack")
    .Input("packed: float")
    .Input("shape: int64")
    .Output("maps: T")
    .Attr(KERAS_STSS_TYPES)
    .SetShapeFn(AskedShape)
    .Doc("The reverse of MapPack.");

REGISTER_OP("KerasStss>MapConv")
    .Input("x: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("kernel: float")
    .Input("maps: int64")
    .Output("y: float")
    .Output("mean: float")
    .Output("variance: float")
    .Attr("strides: list(int)")
    .Attr("paddings: list(int)")
    .Attr("activate: bool")
    .Attr("statistics: bool")
    .SetShapeFn(ConvShape)
    .Doc("Convolution of the packed ReLU(x * scale + shift), or of x, with mean and biased variance per filter, or 0.");

REGISTER_OP("KerasStss>MapConvGrad")
    .Input("x: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("kernel: float")
    .Input("maps: int64")
    .Input("y: float")
    .Input("mean: float")
    .Input("y_gradient: float")
    .Input("mean_gradient: float")
    .Input("variance_gradient: float")
    .Output("x_gradient: float")
    .Output("scale_gradient: float")
    .Output("shift_gradient: float")
    .Output("kernel_gradient: float")
    .Attr("strides: list(int)")
    .Attr("paddings: list(int)")
    .Attr("activate: bool")
    .Attr("statistics: bool")
    .SetShapeFn(GradShape);

REGISTER_OP("KerasStss>MapFinish")
    .Input("y: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("shape: int64")
    .Output("output: T")
    .Attr(KERAS_STSS_TYPES)
    .SetShapeFn(AskedShape)
    .Doc("ReLU(y * scale + shift) of packed maps, brought back to the shape that is asked for.");

REGISTER_OP("KerasStss>MapFinishGrad")
    .Input("y: float")
    .Input("scale: float")
    .Input("shift: float")
    .Input("gradient: T")
    .Output("y_gradient: float")
    .Output("scale_gradient: float")
    .Output("shift_gradient: float")
    .Attr(KERAS_STSS_TYPES)
    .SetShapeFn(GradShape);

#define KERAS_STSS_KERNEL(name) \
  REGISTER_KERNEL_BUILDER(Name("KerasStss>" #name).Device(tensorflow::DEVICE_CPU), name##Op)
KERAS_STSS_KERNEL(MapConvStack);
KERAS_STSS_KERNEL(MapPack);
KERAS_STSS_KERNEL(MapUnpack);
KERAS_STSS_KERNEL(MapConv);
KERAS_STSS_KERNEL(MapConvGrad);
KERAS_STSS_KERNEL(MapFinish);
KERAS_STSS_KERNEL(MapFinishGrad);

}  // namespace keras_stss
