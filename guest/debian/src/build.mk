# Something like the build of a program: many short processes side by side, pipes, files.
#
#   make -f build.mk -j N DIR=/tmp/build UNITS=40
#
# Generates UNITS sources, brings each through a few passes, and links the objects. The sum that
# it prints depends on UNITS alone: not on N, nor on which process ran when.

UNITS ?= 40
DIR ?= /tmp/build
LINES := 300

numbers := $(shell seq 1 $(UNITS))
objects := $(numbers:%=$(DIR)/unit%.o)

.PHONY: program
.SECONDARY:
.DELETE_ON_ERROR:

program: $(DIR)/program
	@echo "BUILD units=$(UNITS) sum=$$(sha256sum <$< | cut -c1-16)"

# The sources: calls of numbered functions, drawn by a generator whose products a double holds.
$(DIR)/unit%.c:
	@mkdir -p $(DIR)
	@awk -v seed=$* -v lines=$(LINES) 'BEGIN { \
	    x = seed; \
	    for (line = 0; line < lines; line++) { \
	        x = (x * 16807) % 2147483647; \
	        printf "int f%d_%d(int a) { return f%d_%d(a) + %d; } // %.6f\n", \
	            seed, line, x % 40, x % lines, x % 1000, 1e9 / x; \
	    } }' >$@

# Preprocessing: without comments. Its check is a process of its own.
$(DIR)/unit%.i: $(DIR)/unit%.c
	@sed 's| *//.*||' $< | tr -s ' ' >$@
	@test "$$(wc -l <$@)" = $(LINES)

# Symbols that it defines and needs.
$(DIR)/unit%.sym: $(DIR)/unit%.i
	@grep -o 'f[0-9]*_[0-9]*' $< | sort | uniq -c | sort -k1nr -k2 >$@

# The object: packed, unpacked again and compared.
$(DIR)/unit%.o: $(DIR)/unit%.i $(DIR)/unit%.sym
	@cat $^ | gzip -n >$@
	@gunzip <$@ | tail -n +$$(($(LINES) + 1)) | cmp - $(DIR)/unit$*.sym

$(DIR)/program: $(objects)
	@cat $^ | sha256sum >$@
	@for object in $^; do gunzip <$$object; done | sort -u | md5sum >>$@
