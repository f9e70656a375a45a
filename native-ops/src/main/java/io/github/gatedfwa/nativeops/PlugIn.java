package io.github.gatedfwa.nativeops;

import java.io.IOException;
import java.io.InputStream;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.CodeSource;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.jar.JarEntry;
import java.util.jar.JarFile;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.nd4j.linalg.api.ops.executioner.OpExecutioner;
import org.nd4j.linalg.factory.Nd4j;

/** The plug-ins: one for each of ND4J's back ends, which keep arrays in different memory. */
enum PlugIn {
  /** nd4j-native: arrays of the host; this project's CPU kernels, or a GPU that it copies to. */
  CPU("libgatedfwa_cpu.so", ""),
  /** nd4j-cuda: arrays, device and stream of ND4J. */
  CUDA("libgatedfwa_nd4jcuda.so", PlugIn.GPU_CLASSIFIER);

  /** Behind the platform, in the names of the jar that holds GPU code and of its directory. */
  static final String GPU_CLASSIFIER = "-gpu";

  private static final Pattern CUDA_POM =
      Pattern.compile("META-INF/maven/org\\.nd4j/(nd4j-cuda-[^/]+)/pom\\.properties");

  private final String file;
  private final String classifier;

  PlugIn(String file, String classifier) {
    this.file = file;
    this.classifier = classifier;
  }

  static PlugIn of(OpExecutioner.ExecutionerType backend) {
    return switch (backend) {
      case NATIVE_CPU -> CPU;
      case CUDA -> CUDA;
    };
  }

  /** The library's file name. */
  String file() {
    return file;
  }

  /** The library's resource, relative to this package. */
  String resource(String platform) {
    return platform + classifier + "/" + file;
  }

  /**
   * The library.
   *
   * @throws NativeLibraryException if it is not on the class path
   */
  byte[] library(String platform) {
    try (InputStream in = PlugIn.class.getResourceAsStream(resource(platform))) {
      if (in == null) {
        throw new NativeLibraryException(
            "the class path has no GatedFWA library for ND4J's "
                + this
                + " back end; it is in the jar of native-ops"
                + (classifier.isEmpty() ? "" : " with the classifier " + platform + classifier));
      }
      return in.readAllBytes();
    } catch (IOException e) {
      throw new NativeLibraryException("the native GatedFWA library cannot be read: " + e, e);
    }
  }

  /**
   * The versions of ND4J's API and of its back end, by artifact. An application that is packed into
   * one jar may have lost the files that tell them.
   *
   * @param backend a class of the back end
   */
  Map<String, String> nd4jVersions(Class<?> backend) {
    Map<String, String> versions = new LinkedHashMap<>();
    try {
      for (String artifact :
          this == CPU ? List.of("nd4j-api", "nd4j-native") : List.of("nd4j-api")) {
        String name = "META-INF/maven/org.nd4j/" + artifact + "/pom.properties";
        try (InputStream in = Nd4j.class.getClassLoader().getResourceAsStream(name)) {
          if (in != null) {
            versions.put(artifact, version(in));
          }
        }
      }
      CodeSource source = backend.getProtectionDomain().getCodeSource();
      if (this == CUDA && source != null) {
        Path jar = Path.of(source.getLocation().toURI());
        if (Files.isRegularFile(jar)) {
          versions.putAll(cudaVersions(jar));
        }
      }
    } catch (IOException | IllegalArgumentException | URISyntaxException e) {
      throw new NativeLibraryException("the version of ND4J cannot be read: " + e, e);
    }
    return versions;
  }

  /** Of the artifacts nd4j-cuda-* in a jar: the CUDA version is part of their names. */
  static Map<String, String> cudaVersions(Path jar) throws IOException {
    Map<String, String> versions = new LinkedHashMap<>();
    try (JarFile file = new JarFile(jar.toFile())) {
      for (JarEntry entry : file.stream().toList()) {
        Matcher pom = CUDA_POM.matcher(entry.getName());
        if (pom.matches()) {
          try (InputStream in = file.getInputStream(entry)) {
            versions.put(pom.group(1), version(in));
          }
        }
      }
    }
    return versions;
  }

  private static String version(InputStream pomProperties) throws IOException {
    Properties properties = new Properties();
    properties.load(pomProperties);
    return properties.getProperty("version", "unknown");
  }
}
