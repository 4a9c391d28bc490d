// TensorFlow's kernels of the convolutions over tiny maps: they check what they get and call map_conv.h.
#include <vector>

#include "map_conv.h"
#include "map_conv_checks.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow_parallel.h"

namespace keras_stss {
namespace {

using tensorflow::DataType;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using Status = absl::Status;

DType StoredAs(DataType type) {
  return type == tensorflow::DT_FLOAT  ? DType::kFloat32
         : type == tensorflow::DT_HALF ? DType::kFloat16
                                       : DType::kBFloat16;
}

const float* Floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data()); }
float* Floats(Tensor* tensor) { return static_cast<float*>(tensor->data()); }

// The end of a kernel, which fails where memory is out.
Status Finished(bool done) {
  return done ? absl::OkStatus()
              : absl::ResourceExhaustedError("map_conv: there is no memory for what lies between its steps");
}

// What a kernel makes of maps (rows, columns, channels).
Status MakeLayer(int64_t rows, int64_t columns, int64_t channels, const TensorShape& kernel, const int64_t* strides,
                 const int64_t* paddings, MapConvLayer* layer) {
  if (kernel.dims() != 4 || kernel.dim_size(2) != channels || kernel.num_elements() == 0) {
    return InvalidMaps("the kernel must be (height, width, ", channels, ", filters), none of them 0. ",
                       "Received: shape=", kernel.DebugString());
  }
  *layer = {rows,
            columns,
            channels,
            kernel.dim_size(0),
            kernel.dim_size(1),
            kernel.dim_size(3),
            strides[0],
            strides[1],
            paddings[0],
            paddings[1],
            0,
            0};
  const int64_t spare_rows = rows + 2 * paddings[0] - layer->kernel_rows;
  const int64_t spare_columns = columns + 2 * paddings[1] - layer->kernel_columns;
  if (rows < 1 || columns < 1 || spare_rows < 0 || spare_columns < 0) {
    return InvalidMaps("the kernel ", kernel.DebugString(), " with padding ", paddings[0], ", ", paddings[1],
                       " does not fit maps of ", rows, "×", columns);
  }
  layer->out_rows = spare_rows / strides[0] + 1;
  layer->out_columns = spare_columns / strides[1] + 1;
  return absl::OkStatus();
}

Status CheckVector(const Tensor& tensor, const char* name, int64_t size) {
  if (tensor.dims() == 1 && tensor.dim_size(0) == size) return absl::OkStatus();
  return InvalidMaps(name, " must have shape (", size, "). Received: shape=", tensor.shape().DebugString());
}

// (blocks, rows, columns, channels, kMapLanes)
Status CheckPacked(const Tensor& tensor, const char* name, int64_t maps) {
  const auto& shape = tensor.shape();
  if (maps >= 0 && shape.dims() == 5 && shape.dim_size(4) == kMapLanes && shape.dim_size(0) == MapBlocks(maps)) {
    return absl::OkStatus();
  }
  return InvalidMaps(name, " must be ", maps, " packed maps: (", MapBlocks(maps), ", rows, columns, channels, ",
                     kMapLanes, "). Received: shape=", shape.DebugString());
}

Status CheckSame(const Tensor& tensor, const char* name, const TensorShape& shape) {
  if (tensor.shape() == shape) return absl::OkStatus();
  return InvalidMaps(name, " must have shape ", shape.DebugString(),
                     ". Received: shape=", tensor.shape().DebugString());
}

TensorShape PackedShape(int64_t maps, int64_t rows, int64_t columns, int64_t channels) {
  return TensorShape({MapBlocks(maps), rows, columns, channels, kMapLanes});
}

// Stored maps (…, rows, columns, channels).
struct Stored {
  int64_t maps, rows, columns, channels;
  int64_t cells() const { return rows * columns * channels; }
};

Status MakeStored(const TensorShape& shape, Stored* stored) {
  const int rank = shape.dims();
  if (rank < 3) {
    return InvalidMaps("maps must have shape (…, rows, columns, channels). Received: shape=", shape.DebugString());
  }
  *stored = {1, shape.dim_size(rank - 3), shape.dim_size(rank - 2), shape.dim_size(rank - 1)};
  for (int axis = 0; axis < rank - 3; ++axis) stored->maps *= shape.dim_size(axis);
  if (stored->cells() == 0) {
    return InvalidMaps("maps must not be empty. Received: shape=", shape.DebugString());
  }
  return absl::OkStatus();
}

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

bool RunConvGrad(const MapConvLayer& layer, int64_t maps, const float* x, MapActivation activation, const float* kernel,
                 const float* y, const float* d_y, MapStatisticsGradient statistics, float* d_x, float* d_scale,
                 float* d_shift, float* d_kernel, const Parallel& parallel) {
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
    OP_REQUIRES_OK(construction, CheckMapPairs(strides_, "strides", count, 1));
    OP_REQUIRES_OK(construction, CheckMapPairs(paddings_, "paddings", count, 0));
    OP_REQUIRES(construction, count <= kMostMapLayers,
                InvalidMaps("a stack has at most ", kMostMapLayers, " convolutions. Received: ", count));
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
    OP_REQUIRES_OK(context, Finished(RunStack(layers, kernels.size(), stored.maps, StoredAs(input.dtype()),
                                              input.data(), weights, offsets, output->data(), OnThreadPool(context))));
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
    OP_REQUIRES_OK(context, Finished(RunPack(stored, StoredAs(input.dtype()), input.data(), Floats(packed),
                                             OnThreadPool(context))));
  }
};

// Allocates a result of the shape that the input `which` asks for, which must be that of the packed maps' content.
Status AllocateAsked(OpKernelContext* context, int which, const Tensor& packed, Stored* stored, Tensor** output) {
  const Tensor& asked = context->input(which);
  if (asked.dims() != 1) {
    return InvalidMaps("shape must be a vector. Received: shape=", asked.shape().DebugString());
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
    OP_REQUIRES_OK(context, Finished(RunUnpack(stored, Floats(packed), StoredAs(output->dtype()), output->data(),
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
    OP_REQUIRES_OK(construction, CheckMapPairs(strides_, "strides", 1, 1));
    OP_REQUIRES_OK(construction, CheckMapPairs(paddings_, "paddings", 1, 0));
  }

 protected:
  Status Read(OpKernelContext* context, int64_t* maps, MapConvLayer* layer, MapActivation* activation) const {
    const Tensor &x = context->input(0), &count = context->input(4);
    if (!tensorflow::TensorShapeUtils::IsScalar(count.shape())) {
      return InvalidMaps("maps must be a scalar. Received: shape=", count.shape().DebugString());
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
    OP_REQUIRES_OK(context, Finished(RunConv(layer, maps, Floats(context->input(0)), activation,
                                             Floats(context->input(3)), Floats(y), statistics_ ? Floats(mean) : nullptr,
                                             Floats(variance), OnThreadPool(context))));
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
                   Finished(RunConvGrad(layer, maps, Floats(context->input(0)), activation, Floats(context->input(3)),
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
    OP_REQUIRES_OK(context, Finished(RunFinish(stored, Floats(y), activation, StoredAs(output->dtype()), output->data(),
                                               OnThreadPool(context))));
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
    OP_REQUIRES_OK(context, CheckSame(y, "y", PackedShape(stored.maps, stored.rows, stored.columns, stored.channels)));
    OP_REQUIRES_OK(context, ReadActivation(context, stored.channels, &activation));
    Tensor* outputs[3];
    for (int i = 0; i < 3; ++i)
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(i).shape(), &outputs[i]));
    OP_REQUIRES_OK(context, Finished(RunFinishGrad(stored, Floats(y), activation, StoredAs(gradient.dtype()),
                                                   gradient.data(), Floats(outputs[0]), Floats(outputs[1]),
                                                   Floats(outputs[2]), OnThreadPool(context))));
  }
};

}  // namespace

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
