/* libjpeg as images/jpeg.rs calls it.
 *
 * libjpeg reports errors by calling a function that must not return, and its
 * state is a struct of macros and unions: both are C's to handle. Each call
 * here comes back with 0, or with 1 and a message; nothing jumps past it.
 *
 * Warnings are errors too (they tell of missing or bad data), save for those of
 * the header that concern no pixel, and for a few stray bytes before the end
 * marker, which some scanners leave: all pixels are there by then.
 */
#include <limits.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum { BUFFER = 1 << 16, STRAY = 16 };

/* Bytes of coefficients that a progressive picture may need; Windows' long holds half of them. */
#if LONG_MAX >> 31
static const long MOST_MEMORY = 4L << 30;
#else
static const long MOST_MEMORY = LONG_MAX;
#endif

/* Reads at most `n` bytes; 0 at the end, negative on an error. */
typedef int64_t (*stfast_read)(void *user, uint8_t *to, size_t n);

typedef struct {
  uint32_t width, height;
  uint32_t components;        /* of the stream */
  uint32_t samples;           /* of a pixel that comes out */
  uint32_t mcu_width, mcu_height;
  uint32_t rows_apart;        /* whether a row of MCUs needs no other to be upsampled */
  uint32_t restart_interval;  /* MCUs; 0 without markers */
  uint32_t sequential;        /* one baseline scan that holds all components */
  uint32_t inverted;          /* CMYK as Adobe stores it */
} stfast_jpeg_info;

typedef struct {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_source_mgr source;
  jmp_buf escape;
  stfast_read read;
  void *user;
  int warned, scanning;
  char message[JMSG_LENGTH_MAX];
  uint8_t buffer[BUFFER];
} stfast_jpeg;

static stfast_jpeg *self_of(j_common_ptr jpeg) { return (stfast_jpeg *)jpeg->client_data; }

static void error_exit(j_common_ptr jpeg) {
  stfast_jpeg *self = self_of(jpeg);
  if (!self->warned) jpeg->err->format_message(jpeg, self->message);
  longjmp(self->escape, 1);
}

static void emit_message(j_common_ptr jpeg, int level) {
  stfast_jpeg *self = self_of(jpeg);
  struct jpeg_error_mgr *err = jpeg->err;
  if (level >= 0 || self->warned) return;
  switch (err->msg_code) {
    case JWRN_NOT_SEQUENTIAL: /* numbers that a baseline scan does not use */
    case JWRN_JFIF_MAJOR:
    case JWRN_ADOBE_XFORM:
      return;
    case JWRN_EXTRANEOUS_DATA:
      if (!self->scanning) return;
      if (err->msg_parm.i[0] <= STRAY && err->msg_parm.i[1] == JPEG_EOI) return;
  }
  err->format_message(jpeg, self->message);
  self->warned = 1;
}

static void init_source(j_decompress_ptr jpeg) { (void)jpeg; }

static boolean fill_input_buffer(j_decompress_ptr jpeg) {
  stfast_jpeg *self = self_of((j_common_ptr)jpeg);
  int64_t n = self->read ? self->read(self->user, self->buffer, BUFFER) : 0;
  if (n < 0) ERREXIT(jpeg, JERR_FILE_READ);
  if (n == 0) ERREXIT(jpeg, JERR_INPUT_EOF);
  self->source.next_input_byte = self->buffer;
  self->source.bytes_in_buffer = (size_t)n;
  return TRUE;
}

static void skip_input_data(j_decompress_ptr jpeg, long n) {
  struct jpeg_source_mgr *source = jpeg->src;
  if (n <= 0) return;
  while ((size_t)n > source->bytes_in_buffer) {
    n -= (long)source->bytes_in_buffer;
    fill_input_buffer(jpeg);
  }
  source->next_input_byte += n;
  source->bytes_in_buffer -= (size_t)n;
}

static void term_source(j_decompress_ptr jpeg) { (void)jpeg; }

static int create(stfast_jpeg *self) {
  if (setjmp(self->escape)) return 1;
  jpeg_create_decompress(&self->jpeg);
  self->jpeg.mem->max_memory_to_use = MOST_MEMORY;
  return 0;
}

/* NULL if there is no memory. */
stfast_jpeg *stfast_jpeg_new(void) {
  stfast_jpeg *self = calloc(1, sizeof *self);
  if (!self) return NULL;
  self->jpeg.err = jpeg_std_error(&self->errors);
  self->errors.error_exit = error_exit;
  self->errors.emit_message = emit_message;
  self->jpeg.client_data = self;
  if (create(self)) {
    free(self);
    return NULL;
  }
  self->source.init_source = init_source;
  self->source.fill_input_buffer = fill_input_buffer;
  self->source.skip_input_data = skip_input_data;
  self->source.resync_to_restart = jpeg_resync_to_restart;
  self->source.term_source = term_source;
  self->jpeg.src = &self->source;
  return self;
}

void stfast_jpeg_free(stfast_jpeg *self) {
  jpeg_destroy_decompress(&self->jpeg);
  free(self);
}

const char *stfast_jpeg_message(const stfast_jpeg *self) { return self->message; }

static void set_source(stfast_jpeg *self, const uint8_t *bytes, size_t n, stfast_read read,
                       void *user) {
  self->source.next_input_byte = bytes;
  self->source.bytes_in_buffer = n;
  self->read = read;
  self->user = user;
}

/* The colours that a stream without a word on them has: `space`, or as libjpeg guesses. */
static void choose_colours(struct jpeg_decompress_struct *jpeg, J_COLOR_SPACE space) {
  int mute = !jpeg->saw_JFIF_marker && !jpeg->saw_Adobe_marker;
  if (jpeg->num_components == 3) {
    if (mute && space != JCS_UNKNOWN) jpeg->jpeg_color_space = space;
    jpeg->out_color_space = JCS_RGB;
  } else if (jpeg->num_components == 4) {
    jpeg->out_color_space = JCS_CMYK;
  } else {
    jpeg->out_color_space = jpeg->jpeg_color_space;
  }
}

static void describe(const struct jpeg_decompress_struct *jpeg, stfast_jpeg_info *info) {
  int v = jpeg->max_v_samp_factor, h = jpeg->max_h_samp_factor;
  int one = jpeg->num_components == 1;
  info->width = jpeg->image_width;
  info->height = jpeg->image_height;
  info->components = (uint32_t)jpeg->num_components;
  info->samples = (uint32_t)jpeg->num_components;
  info->mcu_width = (uint32_t)(one ? DCTSIZE : h * DCTSIZE);
  info->mcu_height = (uint32_t)(one ? DCTSIZE : v * DCTSIZE);
  info->rows_apart = one || v == 1;
  info->restart_interval = jpeg->restart_interval;
  info->sequential = !jpeg->progressive_mode && !jpeg->arith_code &&
                     jpeg->comps_in_scan == jpeg->num_components;
  info->inverted = jpeg->saw_Adobe_marker;
}

/* Reads the tables, if any, then the header of the stream in `bytes`, which `read` continues.
 * `space`: 0 as the stream says, 1 RGB, 2 YCbCr where the stream says nothing. */
int stfast_jpeg_header(stfast_jpeg *self, const uint8_t *tables, size_t n_tables,
                       const uint8_t *bytes, size_t n, stfast_read read, void *user, int space,
                       stfast_jpeg_info *info) {
  static const J_COLOR_SPACE SPACES[] = {JCS_UNKNOWN, JCS_RGB, JCS_YCbCr};
  struct jpeg_decompress_struct *jpeg = &self->jpeg;
  if (setjmp(self->escape)) return 1;
  if (n_tables) {
    set_source(self, tables, n_tables, NULL, NULL);
    if (jpeg_read_header(jpeg, FALSE) != JPEG_HEADER_TABLES_ONLY)
      ERREXIT(jpeg, JERR_NO_QUANT_TABLE);
  }
  set_source(self, bytes, n, read, user);
  jpeg_read_header(jpeg, TRUE);
  choose_colours(jpeg, SPACES[space]);
  describe(jpeg, info);
  return self->warned;
}

int stfast_jpeg_start(stfast_jpeg *self) {
  if (setjmp(self->escape)) return 1;
  self->scanning = 1;
  jpeg_start_decompress(&self->jpeg);
  return self->warned;
}

/* Leaves out columns left and right of those wanted, and the work that they would be.
 * Both numbers are widened to whole MCUs. */
int stfast_jpeg_crop(stfast_jpeg *self, uint32_t *x, uint32_t *width) {
  if (setjmp(self->escape)) return 1;
  jpeg_crop_scanline(&self->jpeg, x, width);
  return self->warned;
}

/* Bytes that have been read from the source but not taken yet. */
size_t stfast_jpeg_left(const stfast_jpeg *self) { return self->source.bytes_in_buffer; }

static void read_rows(stfast_jpeg *self, uint8_t *to, size_t stride, uint32_t rows) {
  while (rows && !self->warned) {
    JSAMPROW lines[16];
    JDIMENSION n = rows < 16 ? rows : 16;
    for (JDIMENSION i = 0; i < n; i++) lines[i] = to + i * stride;
    n = jpeg_read_scanlines(&self->jpeg, lines, n);
    to += n * stride;
    rows -= n;
  }
}

int stfast_jpeg_rows(stfast_jpeg *self, uint8_t *to, size_t stride, uint32_t rows) {
  if (setjmp(self->escape)) return 1;
  read_rows(self, to, stride, rows);
  return self->warned;
}

int stfast_jpeg_skip(stfast_jpeg *self, uint32_t rows) {
  if (setjmp(self->escape)) return 1;
  jpeg_skip_scanlines(&self->jpeg, rows);
  return self->warned;
}

/* Reads to the end marker: only then is it known that nothing was missing. */
int stfast_jpeg_finish(stfast_jpeg *self) {
  if (setjmp(self->escape)) return 1;
  jpeg_finish_decompress(&self->jpeg);
  return self->warned;
}
