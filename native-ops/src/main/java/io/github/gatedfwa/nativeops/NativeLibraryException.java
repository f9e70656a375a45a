package io.github.gatedfwa.nativeops;

/** The native ops cannot be used in this JVM; the message says why, and what is supported. */
public final class NativeLibraryException extends RuntimeException {

  private static final long serialVersionUID = 1L;

  NativeLibraryException(String message, Throwable cause) {
    super(message, cause);
  }

  NativeLibraryException(String message) {
    super(message);
  }
}
