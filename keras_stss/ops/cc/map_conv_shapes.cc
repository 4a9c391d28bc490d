// The operations of the convolutions over tiny maps as TensorFlow's graphs know them: signatures and shape inference.
//
// MapConvStack is the whole of it for inference. For training, MapPack brings maps into the packed form (map_conv.h),
// MapConv is one convolution with the statistics that batch normalisation wants, and MapFinish brings the last one's
// result back.
#include <vector>

#include "map_conv_checks.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_stss {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;
using Status = absl::Status;

#define KERAS_STSS_TYPES "T: {float, half, bfloat16}"

// (size + 2 padding - kernel) / stride + 1, where the sizes are known.
Status OutSize(InferenceContext* c, DimensionHandle size, DimensionHandle kernel, int64_t stride, int64_t padding,
               DimensionHandle* out) {
  if (stride < 1 || padding < 0) return InvalidMaps("strides must be positive and paddings not negative");
  *out = c->UnknownDim();
  if (!c->ValueKnown(size) || !c->ValueKnown(kernel)) return absl::OkStatus();
  const int64_t spare = c->Value(size) + 2 * padding - c->Value(kernel);
  if (spare < 0) {
    return InvalidMaps("a kernel of ", c->Value(kernel), " with padding ", padding, " does not fit maps of ",
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
  TF_RETURN_IF_ERROR(CheckMapPairs(strides, "strides", count, 1));
  TF_RETURN_IF_ERROR(CheckMapPairs(paddings, "paddings", count, 0));
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
    c->set_output(
        0, c->MakeShape({c->UnknownDim(), c->UnknownDim(), c->UnknownDim(), c->UnknownDim(), c->MakeDim(kMapLanes)}));
    return absl::OkStatus();
  }
  ShapeHandle maps;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 3, &maps));
  int64_t count = 1;
  for (int axis = 0; axis < c->Rank(maps) - 3 && count >= 0; ++axis) {
    const auto size = c->Dim(maps, axis);
    count = c->ValueKnown(size) ? count * c->Value(size) : -1;
  }
  const DimensionHandle blocks = count < 0 ? c->UnknownDim() : c->MakeDim(MapBlocks(count));
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
  TF_RETURN_IF_ERROR(CheckMapPairs(strides, "strides", 1, 1));
  TF_RETURN_IF_ERROR(CheckMapPairs(paddings, "paddings", 1, 0));
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

}  // namespace

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

}  // namespace keras_stss
