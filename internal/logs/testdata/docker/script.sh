printf 'plain\n\n'
printf 'tab\there "quoted" back\\slash <html> & \001\037\177 \b\f\v \r\n'
printf 'utf-8 \303\251 \342\200\250\342\200\251 \360\237\220\263 \357\277\275 bad \377\303 \355\240\200 cut \360\237\220\n'
for n in 16383 16384 16385 32768 40000; do head -c $n /dev/zero | tr '\0' x; echo; done
for i in $(seq 5461); do printf '\303\251%s' x; done; printf '\303\251\303\251\n'
printf 'null \000 byte\n'
printf 'no newline at the end'
