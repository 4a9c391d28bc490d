/* Classifies one clip with an exported model, through TensorFlow's C API alone: no Python, no Keras.
 *
 *   client MODEL FRAMES.raw T HEIGHT WIDTH    raw RGB frames: T * HEIGHT * WIDTH * 3 bytes, frame after frame
 *   client MODEL --jpeg FILE...               encoded JPEG frames, in order
 *
 * MODEL is the folder with saved_model.pb. Prints the five most probable labels, one "probability<TAB>label" a line.
 * Exit code: 0; 1 with a message on stderr where something failed; 2 for a wrong command line.
 *
 * The C API names tensors, not signatures. Which tensor belongs to which input or output is written in the SavedModel
 * (MetaGraphDef.signature_def), and read from there: a small reader of protocol buffers' wire format does it.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

#define TOP 5

static int fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("client: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return -1;
}

/* ---- Files ------------------------------------------------------------------------------------------------------ */

typedef struct {
  char *bytes;
  size_t size;
} File;

static int read_file(const char *path, File *file) {
  FILE *stream = fopen(path, "rb");
  if (!stream) return fail("%s cannot be opened: %s", path, strerror(errno));
  size_t capacity = 1 << 16;
  file->size = 0;
  file->bytes = malloc(capacity);
  while (file->bytes) {
    file->size += fread(file->bytes + file->size, 1, capacity - file->size, stream);
    if (file->size < capacity) break;
    capacity *= 2;
    char *larger = realloc(file->bytes, capacity);
    if (!larger) free(file->bytes);
    file->bytes = larger;
  }
  int broken = ferror(stream);
  fclose(stream);
  if (!file->bytes) return fail("%s: out of memory", path);
  if (broken) return fail("%s cannot be read", path);
  return 0;
}

/* ---- Signatures: MetaGraphDef.signature_def ---------------------------------------------------------------------- */

/* A piece of a serialized message. */
typedef struct {
  const uint8_t *at, *end;
} Span;

static int read_varint(Span *span, uint64_t *value) {
  *value = 0;
  for (int shift = 0; shift < 64 && span->at < span->end; shift += 7) {
    uint8_t byte = *span->at++;
    *value |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) return 1;
  }
  return 0;
}

/* Reads the next field; its content goes to `content` where it is length-delimited (messages, strings, map entries)
 * and is empty otherwise. Returns the field number, or 0 at the end of the message or where it is damaged. */
static uint64_t next_field(Span *message, Span *content) {
  uint64_t key, size = 0;
  if (!read_varint(message, &key)) return 0;
  content->at = content->end = message->at;
  switch (key & 7) {
    case 0: return read_varint(message, &size) ? key >> 3 : 0;
    case 1: size = 8; break;
    case 5: size = 4; break;
    case 2:
      if (!read_varint(message, &size)) return 0;
      break;
    default: return 0;
  }
  if (size > (uint64_t)(message->end - message->at)) return 0;
  if ((key & 7) == 2) {
    content->at = message->at;
    content->end = message->at + size;
  }
  message->at += size;
  return key >> 3;
}

static int find_field(Span message, uint64_t number, Span *content) {
  uint64_t field;
  while ((field = next_field(&message, content))) {
    if (field == number) return 1;
  }
  return 0;
}

/* The value of a map<string, message> entry: each is a message with key = 1, value = 2. */
static int find_entry(Span message, uint64_t number, const char *key, Span *value) {
  Span entry, name;
  uint64_t field;
  while ((field = next_field(&message, &entry))) {
    if (field == number && find_field(entry, 1, &name) && (size_t)(name.end - name.at) == strlen(key) &&
        !memcmp(name.at, key, strlen(key)) && find_field(entry, 2, value)) {
      return 1;
    }
  }
  return 0;
}

/* Finds the graph's tensor for an input (kind 1) or output (kind 2) of a signature. */
static int find_tensor(TF_Graph *graph, Span signature, uint64_t kind, const char *name, TF_Output *tensor) {
  Span info, text;
  char operation[256];
  /* SignatureDef: inputs = 1, outputs = 2 (maps to TensorInfo); TensorInfo: name = 1, "operation:index". */
  if (!find_entry(signature, kind, name, &info) || !find_field(info, 1, &text)) {
    return fail("the signature has no tensor '%s'", name);
  }
  snprintf(operation, sizeof operation, "%.*s", (int)(text.end - text.at), (const char *)text.at);
  char *colon = strrchr(operation, ':');
  tensor->index = colon ? atoi(colon + 1) : 0;
  if (colon) *colon = 0;
  tensor->oper = TF_GraphOperationByName(graph, operation);
  if (!tensor->oper || tensor->index < 0 || tensor->index >= TF_OperationNumOutputs(tensor->oper)) {
    return fail("the graph has no tensor '%.*s'", (int)(text.end - text.at), (const char *)text.at);
  }
  return 0;
}

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

/* uint8 (1, T, height, width, 3), or NULL. */
static TF_Tensor *frames_tensor(const char *path, char *const sizes[3]) {
  int64_t shape[5] = {1, 0, 0, 0, 3};
  size_t size = 3;
  for (int axis = 0; axis < 3; ++axis) {
    char *rest;
    long value = strtol(sizes[axis], &rest, 10);
    if (*rest || rest == sizes[axis] || value < 0 || value > 1 << 16) {
      fail("T, HEIGHT and WIDTH must be numbers up to %d. Received: %s", 1 << 16, sizes[axis]);
      return NULL;
    }
    shape[axis + 1] = value;
    size *= (size_t)value;
  }
  File file = {NULL, 0};
  TF_Tensor *tensor = NULL;
  if (!read_file(path, &file)) {
    if (file.size != size) {
      fail("%s must hold T * HEIGHT * WIDTH * 3 = %zu bytes. Received: %zu", path, size, file.size);
    } else if (!(tensor = TF_AllocateTensor(TF_UINT8, shape, 5, size))) {
      fail("out of memory");
    } else if (size) {
      memcpy(TF_TensorData(tensor), file.bytes, size);
    }
  }
  free(file.bytes);
  return tensor;
}

/* string (1, T), or NULL. The strings are views of `files`, which must outlive the tensor. */
static TF_Tensor *jpeg_tensor(int count, char *const paths[], File *files) {
  int64_t shape[2] = {1, count};
  for (int i = 0; i < count; ++i) {
    if (read_file(paths[i], &files[i])) return NULL;
  }
  TF_Tensor *tensor = TF_AllocateTensor(TF_STRING, shape, 2, (size_t)count * sizeof(TF_TString));
  if (!tensor) {
    fail("out of memory");
    return NULL;
  }
  TF_TString *strings = TF_TensorData(tensor);
  for (int i = 0; i < count; ++i) {
    TF_StringInit(&strings[i]);
    TF_StringAssignView(&strings[i], files[i].bytes, files[i].size);
  }
  return tensor;
}

/* ---- Classification ---------------------------------------------------------------------------------------------- */

static int print_top(TF_Tensor *probabilities, TF_Tensor *labels) {
  if (TF_TensorType(probabilities) != TF_FLOAT || TF_TensorType(labels) != TF_STRING ||
      TF_TensorElementCount(probabilities) != TF_TensorElementCount(labels)) {
    return fail("probabilities and labels must be float and string tensors of one shape");
  }
  int64_t classes = TF_TensorElementCount(probabilities), shown[TOP];
  const float *values = TF_TensorData(probabilities);
  const TF_TString *texts = TF_TensorData(labels);
  for (int rank = 0; rank < TOP && rank < classes; ++rank) {
    int64_t best = -1;
    for (int64_t i = 0; i < classes; ++i) {
      int taken = 0;
      for (int before = 0; before < rank; ++before) taken |= shown[before] == i;
      if (!taken && (best < 0 || values[i] > values[best])) best = i;
    }
    shown[rank] = best;
    printf("%.6f\t%.*s\n", values[best], (int)TF_StringGetSize(&texts[best]), TF_StringGetDataPointer(&texts[best]));
  }
  return 0;
}

static int run(TF_Session *session, TF_Graph *graph, Span meta_graph, const char *signature_name,
               const char *input_name, TF_Tensor *input, TF_Status *status) {
  Span signature;
  TF_Output feed, fetches[2];
  TF_Tensor *outputs[2] = {NULL, NULL};
  /* MetaGraphDef: signature_def = 5. */
  if (!find_entry(meta_graph, 5, signature_name, &signature)) return fail("no signature '%s'", signature_name);
  if (find_tensor(graph, signature, 1, input_name, &feed) ||
      find_tensor(graph, signature, 2, "probabilities", &fetches[0]) ||
      find_tensor(graph, signature, 2, "labels", &fetches[1])) {
    return -1;
  }
  TF_SessionRun(session, NULL, &feed, &input, 1, fetches, outputs, 2, NULL, 0, NULL, status);
  int result = TF_GetCode(status) == TF_OK ? print_top(outputs[0], outputs[1])
                                           : fail("%s: %s", signature_name, TF_Message(status));
  for (int i = 0; i < 2; ++i) {
    if (outputs[i]) TF_DeleteTensor(outputs[i]);
  }
  return result;
}

/* Loads the model, runs one signature and lets everything go again. */
static int classify(const char *folder, const char *signature, const char *input_name, TF_Tensor *input) {
  static const char *const tags[] = {"serve"};
  TF_Status *status = TF_NewStatus(), *closing = TF_NewStatus();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Graph *graph = TF_NewGraph();
  TF_Buffer *meta_graph = TF_NewBuffer();
  int result;
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, folder, tags, 1, graph, meta_graph, status);
  if (TF_GetCode(status) != TF_OK) {
    result = fail("%s cannot be loaded: %s", folder, TF_Message(status));
  } else {
    const uint8_t *bytes = meta_graph->data;
    Span span = {bytes, bytes + meta_graph->length};
    result = run(session, graph, span, signature, input_name, input, status);
  }
  if (session) {
    TF_CloseSession(session, closing);
    if (TF_GetCode(closing) != TF_OK) result = fail("the session cannot be closed: %s", TF_Message(closing));
    TF_DeleteSession(session, closing);
    if (TF_GetCode(closing) != TF_OK) result = fail("the session cannot be deleted: %s", TF_Message(closing));
  }
  TF_DeleteBuffer(meta_graph);
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(closing);
  TF_DeleteStatus(status);
  return result;
}

int main(int argc, char **argv) {
  int jpeg = argc > 3 && !strcmp(argv[2], "--jpeg");
  if (!jpeg && argc != 6) {
    fprintf(stderr,
            "usage: %s MODEL FRAMES.raw T HEIGHT WIDTH   (T * HEIGHT * WIDTH * 3 bytes of RGB)\n"
            "       %s MODEL --jpeg FILE...              (one encoded JPEG file a frame)\n",
            argv[0], argv[0]);
    return 2;
  }
  int count = jpeg ? argc - 3 : 0, result = -1;
  File *files = calloc((size_t)count + 1, sizeof *files);
  TF_Tensor *input = NULL;
  if (!files) {
    fail("out of memory");
  } else {
    input = jpeg ? jpeg_tensor(count, argv + 3, files) : frames_tensor(argv[2], argv + 3);
  }
  if (input) {
    result = classify(argv[1], jpeg ? "serving_jpeg" : "serving_default", jpeg ? "jpeg" : "frames", input);
    TF_DeleteTensor(input);
  }
  for (int i = 0; files && i < count; ++i) free(files[i].bytes);
  free(files);
  return result ? 1 : 0;
}
